"""Steps that lie a duration apart, and the last step before a sample."""

from __future__ import annotations

import pytest

from largebatch.schedule import BatchPlan, Clock, Duration, Every, Phase

PLAN = BatchPlan([Phase(64, end=250), Phase(100)], 330, total_samples=990)


@pytest.mark.parametrize(
    ("every", "steps"),
    [
        ("1st", list(range(1, 14))),
        ("4st", [4, 8, 12]),
        ("1ep", [5, 9, 13]),
        ("250sa", [4, 7, 10]),
        ("50%", [7, 13]),
        ("0sa", list(range(1, 14))),
    ],
)
def test_steps(every: str, steps: list[int]) -> None:
    due = Every(Duration.parse(every), Clock(330, 990, PLAN)).due
    found = [number for number, step in enumerate(PLAN.steps(), 1) if due(step, number)]
    assert found == steps


def test_the_step_that_led_to_a_sample() -> None:
    for step in PLAN.steps():
        assert PLAN.step_before(step.end) == step
    between = PLAN.step_before(100)
    assert (between.start, between.size) == (64, 36)
