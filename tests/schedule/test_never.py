"""What a config asks for and the run's length leaves out is said, once, at the start."""

from __future__ import annotations

import pytest

from largebatch._errors import UserError
from largebatch.schedule import BatchConfig, Duration, PhaseConfig, Schedule, ScheduleConfig

EPOCH = 1000


def times(*texts):
    return [Duration.parse(text) for text in texts]


def schedule(cycles=None, plan=(), lr=0.1, **keys):
    durations = {
        key: Duration.parse(value)
        for key, value in keys.items()
        if key in ("length", "warmup", "cycle")
    }
    config = ScheduleConfig(**{"length": Duration(10, "ep"), **keys, **durations})
    batch = BatchConfig(size=100, plan=list(plan))
    return Schedule(config, batch, lr, "none", EPOCH, cycles=cycles)


def said(**keys):
    """Return what is said beyond what a run that gets to everything says."""
    made = schedule(**keys)
    return [line for line in made.describe() if "never" in line or "=" in line.split(" ")[0]]


def phase(until=None, **keys):
    return PhaseConfig(until=Duration.parse(until) if until else None, **keys)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"curve": "multistep", "milestones": times("5ep", "40ep")}, ["40ep", "never", "10,000"]),
        ({"curve": "multistep", "milestones": times("10ep")}, ["10ep", "never"]),
        ({"curve": "multistep", "milestones": times("50%", "100%")}, ["100%", "never"]),
        ({"curve": "multistep", "milestones": times("500st")}, ["500st", "never"]),
        ({"curve": "multistep", "milestones": times("1Msa")}, ["1Msa", "never"]),
        ({"warmup": "10ep"}, ["schedule.warmup=10ep", "end of the run"]),
        ({"warmup": "500st"}, ["schedule.warmup=500st", "end of the run"]),
        ({"warmup": "100%"}, ["schedule.warmup=100%", "end of the run"]),
        ({"plan": [phase("12ep", size=100), phase(size=200)]}, ["batch.plan[1]", "12,000"]),
        ({"plan": [phase("900st", size=100), phase(size=200)]}, ["batch.plan[1]", "never"]),
        ({"plan": [phase("10ep", lr_multiplier=2.0), phase()]}, ["batch.plan[1]", "never"]),
        ({"curve": "sgdr", "cycle": "11ep"}, ["schedule.cycle=11ep", "never restarts"]),
        ({"curve": "sgdr", "cycle": "6ep", "warmup": "5ep"}, ["schedule.cycle=6ep", "never"]),
        ({"curve": "cyclical", "cycle": "11ep"}, ["schedule.cycle=11ep", "never reaches its peak"]),
        ({"curve": "sgdr", "cycles": 1000}, ["snapshot.cycles=1000", "no more than 100 "]),
        ({"curve": "sgdr", "cycles": 999}, ["snapshot.cycles=999", "no more than"]),
        ({"end": 0.2}, ["schedule.end=0.2", "climbs"]),
        ({"curve": "poly", "end": 0.2}, ["schedule.end=0.2", "climbs"]),
    ],
)  # fmt: skip
def test_what_never_comes_is_said(keys, words):
    lines = said(**keys)
    assert len(lines) == 1, lines
    assert all(word in lines[0] for word in words), lines[0]


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"curve": "multistep", "milestones": times("5ep", "9ep", "99%", "999st")[:2]},
        {"curve": "multistep", "milestones": times("99st")},
        {"warmup": "9ep"},
        {"plan": [phase("5ep", size=100), phase("12ep", size=200)]},
        {"curve": "sgdr", "cycle": "10ep"},
        {"curve": "cyclical", "cycle": "10ep"},
        {"curve": "sgdr", "cycles": 100},
        {"curve": "cyclical", "cycles": 4},
        {"curve": "constant", "end": 0.2},
        {"end": 0.1},
    ],
)
def test_nothing_is_said_of_what_comes(keys):
    assert said(**keys) == []


def test_milestones_beyond_a_short_run_are_no_mistake():
    """Both steps lie at the run's end, as far as it goes, and were said to be out of order."""
    made = schedule(curve="multistep", milestones=times("50st", "300st", "600st"))
    assert [made.lr(samples) for samples in (0, 5000, 9900)] == pytest.approx([0.1, 0.01, 0.01])
    assert sum("never comes" in line for line in made.describe()) == 2
    for wrong in (times("5ep", "3ep"), times("5ep", "50%")):
        with pytest.raises(UserError, match="each later than the one before"):
            schedule(curve="multistep", milestones=wrong)


def test_a_warm_up_longer_than_the_run_is_refused_as_before():
    with pytest.raises(UserError, match=r"schedule.warmup=11ep: 11000 samples, longer than"):
        schedule(warmup="11ep")
