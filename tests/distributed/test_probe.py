"""What the probe says of links whose times are known, and of those that something disturbs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from largebatch.distributed.algorithms import Algorithms
from largebatch.distributed.cost_model import Link
from largebatch.distributed.preference import Preference
from largebatch.distributed.probe import ENOUGH_SECONDS, Probe, _Best

LATENCY = {"row": 2e-5, "column": 1e-3}
SECONDS_PER_BYTE = {"row": 1e-9, "column": 8e-8}  # of a rank: two share a host's link
CHUNK = 7e-3


class Known(Probe):
    """A probe whose every time is known, the first ``disturbed`` of them twenty times as long."""

    def __init__(self, algorithms: Algorithms, disturbed: int) -> None:
        super().__init__(algorithms)
        self._disturbed, self._clock = disturbed, 0.0

    def _pipeline(self, chunks: int) -> _Best:
        return _Best(partial(int, chunks))

    def _times(self, run: Callable[[], object], rounds: int) -> list[float]:
        assert isinstance(run, partial)
        if run.func is int:
            seconds = CHUNK * run.args[0]
        else:
            group, _, message = run.args
            axis = "row" if group is self._algorithms.row else "column"
            seconds = LATENCY[axis] + message.nbytes * SECONDS_PER_BYTE[axis]
        self._disturbed -= 1
        seconds *= 20 if self._disturbed >= 0 else 1
        self._clock += rounds * seconds
        return [seconds] * rounds

    def _spent(self) -> float:
        return self._clock

    def _check(self, model: Any) -> list[Any]:
        return []


@pytest.mark.parametrize("disturbed", [0, 1, 2, 5, 10, 20])
def test_the_links_are_found_also_where_a_turn_was_held_up(ranks, disturbed):
    algorithms = ranks(4, Preference("torus"), hosts=[0, 0, 1, 1]).reducers[0]
    model, _ = Known(algorithms, disturbed).run()
    known = partial(pytest.approx, rel=1e-3)  # a latency is a message's of four bytes
    assert model.fast == Link(known(LATENCY["row"]), known(SECONDS_PER_BYTE["row"]))
    assert model.slow == Link(known(LATENCY["column"]), known(SECONDS_PER_BYTE["column"] / 2))
    assert model.chunk == known(CHUNK)


def test_the_bytes_of_a_message_take_the_time_not_its_latency(ranks):
    algorithms = ranks(4, Preference("torus"), hosts=[0, 0, 1, 1]).reducers[0]
    probe = Known(algorithms, 0)
    axis = probe._axis(algorithms.column, 2)
    assert axis is not None
    probe._improve(axis.nothing)
    while axis.grow():
        probe._improve(axis.message)
    assert axis.message.seconds / 2 < ENOUGH_SECONDS <= axis.message.seconds
    assert probe._axis(None, 1) is None
