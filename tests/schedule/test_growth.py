"""Batches that grow: switched plans, late, seesaw, and the rule of the noise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from largebatch._errors import UserError
from largebatch.schedule import (
    BatchConfig,
    BatchPlan,
    Duration,
    NoiseRule,
    Phase,
    Schedule,
    ScheduleConfig,
    Step,
    scale_lr,
)

EPOCH = 1000


def schedule(rule: str = "none", length: str = "20ep", curve: str = "cosine", **batch) -> Schedule:
    config = ScheduleConfig(length=Duration.parse(length), curve=curve)
    if curve == "multistep":
        config.milestones = [Duration.parse("10ep"), Duration.parse("15ep")]
    return Schedule(config, BatchConfig(**batch), 0.1, rule, EPOCH)


def test_a_switched_plan_is_the_plan_with_both_phases() -> None:
    for at in (64, 960, 1000, 1234 // 64 * 64):
        grown = BatchPlan([Phase(64)], EPOCH, 2, 5000)
        before = list(grown.steps())
        grown.switch(at, Phase(256))
        whole = BatchPlan([Phase(64, end=at), Phase(256)], EPOCH, 2, 5000)
        assert list(grown.steps()) == list(whole.steps())
        kept = [(s.start, s.size) for s in before if s.start < at]
        assert [(s.start, s.size) for s in grown.steps()][: len(kept)] == kept
        assert grown.total_steps == whole.total_steps < len(before)
    with pytest.raises(UserError, match="not after the start"):
        grown.switch(10, Phase(512))
    assert [phase.size for phase in grown.phases] == [64, 256]  # as it was


def test_late_is_one_switch_at_a_share_of_the_run() -> None:
    made = schedule(size=50, control="late", max=200, late=Duration.parse("60%"))
    assert [(p.size, p.end) for p in made.plan.phases] == [(50, 12_000), (200, None)]
    assert made.largest == 200
    assert schedule("linear", size=50, control="late", max=200).lr(16_000, None) == pytest.approx(
        4 * schedule(size=50).lr(16_000)
    )


@pytest.mark.parametrize("rule", ["none", "linear", "sqrt"])
def test_seesaw_doubles_where_the_curve_halves(rule: str) -> None:
    made, plain = schedule(rule, size=50, control="seesaw", max=400), schedule(size=50)
    phases = made.plan.phases
    assert [phase.size for phase in phases] == [50, 100, 200, 400]
    for doublings, phase in enumerate(phases[:-1], start=1):
        assert phase.end is not None
        assert plain.lr(phase.end) <= 0.1 * 0.5**doublings < plain.lr(phase.end - 1)
    for at in range(0, 20_000, 777):
        factor = math.sqrt(made.plan.phase_at(at).size / 50)
        assert made.lr(at) == pytest.approx(plain.lr(at) * factor)


def test_seesaw_of_steps_goes_straight_to_the_batch_of_the_drop() -> None:
    made = schedule(size=50, control="seesaw", max=800, curve="multistep")  # by 10 each
    assert [(p.size, p.end) for p in made.plan.phases] == [(50, 10_000), (400, 15_000), (800, None)]


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ({"control": "noise"}, "batch.control=noise: needs batch.max"),
        ({"control": "noise", "max": 99}, "batch.max=99: no room to double batch.size=50"),
        ({"max": 100}, "batch.max=100: needs batch.control"),
        ({"min": 10}, "batch.min=10: for batch.control=noise only"),
        ({"control": "noise", "max": 100, "min": 51}, "batch.min=51: above batch.size"),
        ({"control": "late", "max": 100, "late": Duration(5, "st")}, "batch.late=5st: in ep"),
        ({"control": "late", "max": 100, "noise_scale": 0.0}, "batch.noise_scale=0.0: a number"),
    ],
)
def test_what_cannot_grow_says_so(batch: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        schedule(size=50, **batch)


def test_steps_are_no_duration_where_the_batch_is_not_known_before() -> None:
    length = ScheduleConfig(
        length=Duration.parse("20ep"), curve="multistep", milestones=[Duration.parse("90st")]
    )
    batch = BatchConfig(size=50, control="noise", max=400)
    with pytest.raises(UserError, match=r"90st: batch.control decides"):
        Schedule(length, batch, 0.1, "none", EPOCH)
    length.curve, length.milestones, length.warmup = "cosine", [], Duration.parse("9st")
    assert Schedule(length, batch, 0.1, "none", EPOCH).warmup_samples == 450
    with pytest.raises(UserError, match=r"schedule.length=20st: batch.control=late"):
        schedule(length="20st", size=50, control="late", max=100)
    config = ScheduleConfig(curve="cyclical", cycle=Duration.parse("2ep"))
    with pytest.raises(UserError, match=r"schedule.curve=cyclical climbs again"):
        Schedule(config, BatchConfig(size=5, control="seesaw", max=50), 0.1, "none", EPOCH)


def test_surge_peaks_at_the_noise_scale() -> None:
    batches = [2**n for n in range(4, 14)]
    rates = [scale_lr(0.1, batch, 16, "surge", 512.0) for batch in batches]
    assert rates[0] == pytest.approx(0.1) and max(rates) == rates[batches.index(512)]
    assert rates[1] / rates[0] == pytest.approx(math.sqrt(2), rel=0.05)  # as sqrt, far below
    best = [1 / (0.5 * (math.sqrt(512 / b) + math.sqrt(b / 512))) for b in batches]
    assert rates == pytest.approx([0.1 * each / best[0] for each in best])
    with pytest.raises(
        UserError, match=r"optim.scaling=surge for a batch of 32.*batch.noise_scale"
    ):
        scale_lr(0.1, 32, 16, "surge")
    with pytest.raises(UserError, match=r"batch.noise_scale"):
        schedule("surge", size=50, reference=25)
    assert schedule("surge", size=50, reference=25, noise_scale=50.0).lr(0) == pytest.approx(
        0.1 * math.sqrt(2) * 75 / 100
    )


def step(start: int, size: int) -> Step:
    return Step(start, size, 0, start, Phase(size))


def test_windows_end_where_samples_say() -> None:
    rule = NoiseRule(start=100, window=50, smallest=8, largest=64)
    ends = [s.end for s in (step(n, 8) for n in range(0, 400, 8)) if rule.due(s)]
    assert ends == [152, 200, 256, 304, 352, 400]


def test_it_doubles_after_two_windows_running_and_never_shrinks_by_itself() -> None:
    rule = NoiseRule(0, 50, smallest=8, largest=32)
    assert [rule.decide(8, low, math.inf) for low in (16, 15.9, 16, 40)] == [8, 8, 8, 16]
    assert [rule.decide(16, low, math.inf) for low in (99, 99)] == [16, 32]
    assert [rule.decide(32, 99, math.inf) for _ in range(5)] == [32] * 5  # the largest
    assert [rule.decide(8, 0.0, 0.5) for _ in range(5)] == [8] * 5
    rule = NoiseRule(0, 50, smallest=4, largest=32, atom=4)
    assert [rule.decide(16, 0.0, 3.9) for _ in range(2)] == [16, 8]
    assert [rule.decide(8, 0.0, high) for high in (1, 3, 1, 1, 0.1, 0.1)] == [8, 8, 8, 4, 8, 4]
    assert [rule.decide(4, 0.0, 0.1) for _ in range(4)] == [4] * 4  # no half ghosts


def test_nothing_changes_where_the_noise_scale_is_one_and_a_half_batches() -> None:
    """20 runs of 100 windows on a stationary problem, 8 groups of a step in 20 dimensions."""
    from largebatch.probes.noise_record import NoiseRecord

    rng = np.random.default_rng(3)
    batch, groups, dims, steps_of_window = 64, 8, 20, 24
    scale = 1.5 * batch
    half_life = batch * steps_of_window / 2
    for _ in range(20):
        record = NoiseRecord(1, half_life)
        rule = NoiseRule(0, batch * steps_of_window, batch, 16 * batch)
        mean = np.full(dims, 1 / math.sqrt(dims))  # |G|^2 = 1, T = scale
        sd = math.sqrt(scale / dims / (batch / groups))
        size, seen = batch, 0
        for _ in range(100 * steps_of_window):
            each = (mean + sd * rng.standard_normal((groups, dims))) / groups
            whole, parts = np.square(each.sum(0)).sum(), np.square(each).sum()
            signal = (whole - parts) / (1 - 1 / groups)
            record.add(seen + batch, np.array([signal]), np.array([batch * (whole - signal)]))
            if rule.due(step(seen, batch)):
                found = record.estimate(0.9)
                if found is not None:
                    size = rule.decide(size, found.low, found.high)
            seen += batch
        assert size == batch
