"""The end of a descent, in few evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from largebatch.probes.room import FARTHEST, Room, find_room


def room_of(rise: Callable[[float], float], guess: float = 2.0) -> tuple[Room, int]:
    calls = []

    def counted(place: float) -> float:
        calls.append(place)
        return rise(place)

    return find_room(counted, guess, 5), len(calls)


@pytest.mark.parametrize("end", [0.02, 0.3, 1.0, 2.0, 4.0, 11.0, 500.0])
def test_that_of_a_quadratic_is_exact(end: float) -> None:
    room, calls = room_of(lambda c: 3.0 * c * (c / end - 1))
    assert room.bounded and room.multiple == pytest.approx(end, rel=1e-9)
    assert calls <= 5
    _, warm = room_of(lambda c: 3.0 * c * (c / end - 1), guess=0.9 * end)
    assert warm <= 3


@pytest.mark.parametrize("end", [0.6, 2.0, 10.0])
@pytest.mark.parametrize("name", ["cosh", "quartic", "cliff"])
def test_that_of_other_descents_is_near(name: str, end: float) -> None:
    half = end / 2
    rise = {
        "cosh": lambda c: math.cosh(min(700.0, (c - half) / 2)) - math.cosh(half / 2),
        "quartic": lambda c: (c - half) ** 4 - half**4,
        "cliff": lambda c: math.nan if c > 1.5 * end else c * (c / end - 1),
    }[name]
    room, _ = room_of(rise)
    assert room.bounded and room.multiple == pytest.approx(end, rel=0.02)


def test_where_there_is_none() -> None:
    room, calls = room_of(lambda c: -c)
    assert not room.bounded and room.multiple == 32.0 and calls == 5
    assert room_of(lambda c: -c, guess=FARTHEST)[0] == Room(FARTHEST, False)
    room, _ = room_of(lambda c: c)
    assert room.bounded and room.multiple < 0.1
    assert room_of(lambda c: math.nan)[0].multiple < 0.2
