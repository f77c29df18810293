"""Real gloo ranks as threads of one process: no seconds of starting processes, the same sockets."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from largebatch.distributed import torus_face
from largebatch.distributed.all_reduce import AllReduce
from largebatch.distributed.preference import Preference
from largebatch.processes.connect import connect

CPU = torch.device("cpu")
TIMEOUT = timedelta(seconds=60)
# Groups that a thread of gloo may still hold: were it the last to hold one, it would join itself.
LATELY: deque[Ranks] = deque(maxlen=3)


class Ranks:
    """``size`` ranks with an :class:`AllReduce` each, over one face of the schedule."""

    def __init__(
        self,
        on_ranks: Callable[..., list[Any]],
        size: int,
        preference: Preference,
        hosts: list[int] | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> None:
        from largebatch.distributed.topology import Topology

        topology = Topology.from_hosts(hosts, preference.grid) if hosts else None
        self.size, self.on_ranks = size, on_ranks

        def make(rank: int, store: dist.Store) -> AllReduce:
            flat = connect(dist.PrefixStore("flat", store), rank, size, timeout, CPU)
            return AllReduce(store, flat, timeout, CPU, preference, topology)

        self.reducers: list[AllReduce] = on_ranks(size, make)
        self.topology = self.reducers[0].topology

    def reduce(self, tensors: list[torch.Tensor], **options: Any) -> None:
        """Reduce one tensor a rank in place."""
        works = [
            reducer.start(tensor, **options)
            for reducer, tensor in zip(self.reducers, tensors, strict=True)
        ]
        for work in works:
            work.wait()

    def close(self) -> None:
        for reducer in self.reducers:
            reducer.close()
        LATELY.append(self)


@pytest.fixture(params=["compiled", "python"])
def face(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Force one face of the schedule."""
    if request.param == "python":
        monkeypatch.setattr(torus_face, "load", lambda: (None, "LARGEBATCH_OPS=reference"))
    elif torus_face.load()[0] is None:
        pytest.skip(f"the compiled schedule is absent: {torus_face.load()[1]}")
    return str(request.param)


@pytest.fixture
def ranks(face: str, on_ranks: Callable[..., list[Any]]) -> Iterator[Callable[..., Ranks]]:
    """Make ranks; they are closed at the end of the test."""
    made: list[Ranks] = []

    def make(*arguments: Any, **options: Any) -> Ranks:
        made.append(Ranks(on_ranks, *arguments, **options))
        return made[-1]

    yield make
    for of_test in made:
        of_test.close()
