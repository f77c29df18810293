"""Overheads of branches, and the batch where they are 20%."""

from __future__ import annotations

import math

import numpy as np
import pytest

from largebatch.study.isotonic import crossing, isotonic
from largebatch.study.overhead import (
    Curve,
    Overhead,
    held_out_variance,
    limit_of,
    overhead_of,
    overheads,
)


def falling(rate: float, end: float = 120.0) -> Curve:
    samples = np.arange(5.0, end + 1, 5.0)
    return Curve(samples, np.exp(-rate * samples / 100))


def test_an_overhead_is_the_samples_for_the_same_loss() -> None:
    reference = falling(1.0)
    assert overhead_of(reference, reference, 100) == pytest.approx(0, abs=1e-12)
    assert overhead_of(falling(1 / 1.1), reference, 100) == pytest.approx(0.1, abs=2e-3)
    assert overhead_of(falling(1.25), reference, 100) == pytest.approx(-0.2, abs=2e-3)
    # Past the end of the branch, by its slope there.
    assert overhead_of(falling(1 / 1.4), reference, 100) == pytest.approx(0.4, abs=0.05)
    assert overhead_of(None, reference, 100) == math.inf
    rising = Curve(np.array([50.0, 120.0]), np.array([1.0, 2.0]))
    assert overhead_of(rising, reference, 100) == math.inf


def test_bounds_are_students_and_share_their_deviation() -> None:
    found = overheads({16: [0.0, 0.1], 32: [0.1, 0.3], 64: [math.inf, 2.0]})
    spread = [math.log(1.1), math.log(1.3 / 1.1)]
    deviation = math.sqrt(sum(each**2 / 2 for each in spread) / 2)
    assert [each.batch for each in found] == [16, 32, 64]
    for each, mean in zip(found[:2], (0.05, 0.2), strict=True):
        assert each.error == pytest.approx((1 + mean) * deviation / math.sqrt(2))
        assert each.bound == pytest.approx(mean + 6.313752 * each.error)  # one degree of freedom
    assert found[2].bound == math.inf and not found[2].passes
    (alone,) = overheads({16: [0.15]})
    assert alone.bound is None and alone.passes


@pytest.mark.slow
@pytest.mark.parametrize("shared", [0.0, 0.9])
def test_the_limit_holds_the_truth_as_often_as_it_says(shared: float) -> None:
    """Overheads of a hyperbola, 0.2 at batch 50; seeds err alone, or mostly together."""
    generator = np.random.default_rng(0)
    batches, covered, widths, count = (8, 16, 32, 64, 128), 0, [], 300
    for _ in range(count):
        own, common = generator.standard_normal((5, 4)), generator.standard_normal(4)
        errors = 0.05 * (math.sqrt(shared) * common + math.sqrt(1 - shared) * own)
        needed = {
            b: (1 + 0.2 * (b - 4) / 46) * np.exp(e) - 1
            for b, e in zip(batches, errors, strict=True)
        }
        limit = limit_of(4, overheads({b: each.tolist() for b, each in needed.items()}))
        low, high = limit.low or math.inf, limit.high or math.inf
        covered += low <= 50 <= high
        widths.append(high / low)
    assert covered / count >= 0.9, covered / count
    assert np.median(widths) < 2


def test_a_limit_above_all_and_one_between() -> None:
    small = [Overhead(8, (0.0, 0.02), 0.01, 0.05), Overhead(16, (0.05, 0.05), 0.01, 0.07)]
    limit = limit_of(4, small)
    assert limit.batch is None and "above the largest" in limit.text()
    lost = [*small, Overhead(32, (math.inf, math.inf), None, math.inf)]
    found = limit_of(4, lost)
    assert found.batch is not None and 16 < found.batch < 32
    assert found.text().startswith(f"{found.batch:,.4g} [")


def test_isotonic_and_crossing() -> None:
    values = isotonic(np.array([1.0, 3.0, 2.0, 4.0]), np.array([1.0, 1.0, 3.0, 1.0]))
    assert values.tolist() == [1.0, 2.25, 2.25, 4.0]
    batches = np.array([1.0, 2.0, 4.0, 8.0])
    assert crossing(batches, values, 9.0) is None
    assert crossing(batches, values, 0.5) == 1.0
    assert crossing(batches, values, 4.0 - 1.75 / 2) == pytest.approx(6)


def judged(rate: float, losses: np.ndarray, end: float = 120.0) -> Curve:
    """Return a branch whose loss of sample i falls as ``losses[i]`` e^(-rate t), in 16 parts."""
    samples = np.arange(5.0, end + 1, 5.0)
    fall = np.exp(-rate * samples / 100)[:, None]
    # Samples differ in how much is left at the end, which the rate decides too.
    each = losses * fall + 0.3 * rate * losses**2 * np.sqrt(fall)
    parts = np.array_split(each, 16, axis=1)
    sums = np.stack([part.sum(1) for part in parts], axis=1)
    weights = np.full_like(sums, 1) * [part.shape[1] for part in parts]
    return Curve(samples, each.mean(1), sums, weights)


def test_the_held_out_samples_variance_is_that_over_held_out_sets() -> None:
    generator = np.random.default_rng(0)
    found, guessed = [], []
    for _ in range(400):
        losses = generator.exponential(1.0, 160)
        branch, reference = judged(0.9, losses), judged(1.0, losses)
        found.append(math.log1p(overhead_of(branch, reference, 100)))
        guess = held_out_variance([(branch, reference)], 100)
        assert guess is not None
        guessed.append(guess)
    assert np.std(found) > 0.004, "the sets do differ"
    # 400 sets tell a variance to 7%; the jackknife of 16 parts is known to lean upwards.
    assert 0.85 < np.mean(guessed) / np.var(found) < 1.3, np.mean(guessed) / np.var(found)


def test_a_bound_holds_the_variance_of_seeds_and_of_the_held_out_set() -> None:
    values = {16: [0.0, 0.1], 32: [0.1, 0.3]}
    alone, both = overheads(values), overheads(values, {16: 0.01, 32: 0.0}, 16)
    assert both[0].held == pytest.approx(1.05 * 0.1)
    assert both[0].error == pytest.approx(math.hypot(alone[0].error, 1.05 * 0.1))
    assert alone[0].freedom < both[0].freedom < 15, "between those of seeds and of parts"
    assert both[1].error == pytest.approx(alone[1].error) and both[1].held == 0.0
    plain = Curve(np.array([1.0, 2.0]), np.array([2.0, 1.0]))
    assert held_out_variance([(plain, plain)], 2) is None, "no parts are known"
