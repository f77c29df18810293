"""BatchPlan: its closed forms against a walk, and exact ends."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from largebatch._errors import UserError
from largebatch.schedule import BatchPlan, Phase


@st.composite
def plans(draw):
    epoch = draw(st.integers(2, 60))
    minimum = draw(st.integers(1, min(4, epoch)))
    total = draw(st.integers(1, 4)) * epoch
    rest = draw(st.integers(0, epoch - 1))
    total += rest if rest >= minimum else 0
    ends = sorted(draw(st.sets(st.integers(1, total + 20), max_size=3)))
    sizes = st.integers(minimum, 80)
    phases = [Phase(draw(sizes), end) for end in ends] + [Phase(draw(sizes))]
    return BatchPlan(phases, epoch, minimum, total)


@settings(max_examples=400, deadline=None)
@given(plans())
def test_closed_forms_agree_with_a_walk(plan):
    steps = list(plan.steps())
    boundaries = [0] + [step.end for step in steps]
    assert boundaries[-1] == plan.total_samples
    assert plan.total_steps == len(steps)
    assert [plan.samples_after(n) for n in range(len(boundaries))] == boundaries
    assert plan.samples_after(len(steps) + 5) == plan.total_samples
    for samples in range(-1, plan.total_samples + 3):
        fewest = next(
            (n for n, end in enumerate(boundaries) if end >= min(samples, plan.total_samples))
        )
        assert plan.steps_until(samples) == fewest


@settings(max_examples=200, deadline=None)
@given(plans())
def test_steps_stay_in_their_epoch_and_cover_it_once(plan):
    seen = 0
    for step in plan.steps():
        assert step.start == seen == step.epoch * plan.epoch_samples + step.position
        assert step.position + step.size <= plan.epoch_samples
        assert step.size >= plan.minimum
        assert step.size < step.phase.size + plan.minimum
        ends = [phase.end for phase in plan.phases if phase.end is not None and phase.end <= seen]
        assert step.phase is plan.phases[len(ends)]
        room = min(plan.epoch_samples - step.position, plan.total_samples - seen)
        assert step.size == room or step.size == step.phase.size
        seen = step.end
    assert seen == plan.total_samples


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 50), st.integers(1, 60), st.integers(0, 300))
def test_a_plan_without_end(epoch, size, steps):
    plan = BatchPlan([Phase(size)], epoch)
    walk = plan.steps()
    for _ in range(steps):
        samples = next(walk).end
    assert plan.samples_after(steps) == (samples if steps else 0)
    assert plan.steps_until(plan.samples_after(steps)) == steps


def test_a_leftover_below_the_minimum_joins_the_step_before():
    joined = BatchPlan([Phase(4)], epoch_samples=9, minimum=2, total_samples=18)
    assert [step.size for step in joined.steps()] == [4, 5, 4, 5]
    apart = BatchPlan([Phase(4)], epoch_samples=9, total_samples=18)
    assert [step.size for step in apart.steps()] == [4, 4, 1, 4, 4, 1]


def test_the_last_step_is_cut_at_the_end_of_the_run():
    plan = BatchPlan([Phase(4)], epoch_samples=10, minimum=2, total_samples=15)
    assert [step.size for step in plan.steps()] == [4, 4, 2, 5]
    assert [step.epoch for step in plan.steps()] == [0, 0, 0, 1]


def test_a_phase_begins_with_a_step_and_does_not_cut_one():
    plan = BatchPlan([Phase(300, end=1000), Phase(500)], epoch_samples=10_000, total_samples=10_000)
    starts = [(step.start, step.size) for step in plan.steps()][2:6]
    assert starts == [(600, 300), (900, 300), (1200, 500), (1700, 500)]


def test_a_phase_shorter_than_a_step_may_never_come():
    plan = BatchPlan([Phase(300, end=100), Phase(7, end=200), Phase(50)], 1000, total_samples=1000)
    assert {step.phase.size for step in plan.steps()} == {300, 50}
    assert plan.samples_after(2) == 350


def test_long_runs_need_no_walk():
    plan = BatchPlan([Phase(256, end=10**15), Phase(8192)], 1_281_167, 2, total_samples=10**18)
    steps = plan.steps_until(10**17)
    assert plan.samples_after(steps - 1) < 10**17 <= plan.samples_after(steps)


@pytest.mark.parametrize(
    ("phases", "arguments", "match"),
    [
        ([Phase(8, 5), Phase(8, 5), Phase(8)], (10, 1, 40), r"batch.plan\[1\].until"),
        ([Phase(8, 0), Phase(8)], (10, 1, 40), r"batch.plan\[0\].until"),
        ([Phase(8, 5), Phase(8, 20)], (10, 1, 40), "leave `until` out"),
        ([Phase(1)], (10, 2, 40), "batch.size=1"),
        ([Phase(4)], (10, 2, 41), "schedule.length"),
        ([Phase(4)], (1, 2, 40), "training set of 1"),
    ],
)
def test_contradictions(phases, arguments, match):
    with pytest.raises(UserError, match=match):
        BatchPlan(phases, *arguments)
