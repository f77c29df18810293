"""The estimator against simulated gradients whose noise scale is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from largebatch.probes.noise_estimate import NoiseEstimate, estimate_noise
from largebatch.probes.noise_layers import layerwise_noise_scale
from largebatch.probes.noise_record import MOST, NoiseRecord
from largebatch.probes.noise_terms import noise_terms, noise_terms_of

BATCH = 64


def terms(rng, steps, scale, sizes, spectrum, draw=None, factors=None, known=None):
    """Return |G|^2 and T, (..., steps) each, of steps with |G| = 1 and T = ``scale``.

    ``spectrum`` has the variances of the covariance; groups of ``sizes`` samples have ``factors``
    times it; ``known`` are the groups whose gradients are measured.
    """
    shape = steps if isinstance(steps, tuple) else (steps,)
    sizes = np.asarray(sizes, float)
    share = sizes / sizes.sum()
    spectrum = np.asarray(spectrum) / np.sum(spectrum) * scale
    factors = np.ones(len(sizes)) if factors is None else np.asarray(factors)
    normal = rng.standard_normal if draw is None else draw
    noise = normal((*shape, len(sizes), len(spectrum)))
    groups = noise * np.sqrt(factors[:, None] * spectrum / sizes[:, None]) + len(spectrum) ** -0.5
    groups = groups * share[:, None]
    known = slice(None) if known is None else known
    parts = np.square(groups[..., known, :]).sum((-1, -2))
    whole = np.square(groups.sum(-2)).sum(-1)
    left = share[known]
    return noise_terms(whole, parts, left.sum(), np.square(left).sum(), sizes.sum())


def student(rng, freedom):
    """Return a source of numbers with heavy tails, of variance 1."""
    return lambda shape: rng.standard_t(freedom, shape) * math.sqrt((freedom - 2) / freedom)


CASES = {
    # scale, sizes, spectrum, tails, factors of the groups' covariance, known groups
    "flat": (50.0, [8] * 8, np.ones(40), None, None, None),
    "power law": (50.0, [32] * 2, 1 / np.arange(1, 41), None, None, None),
    "unequal groups": (50.0, [8] * 7 + [3], np.ones(40), None, [1.0] * 7 + [4.0], None),
    "t3 tails": (50.0, [8] * 8, np.ones(40), 3, None, None),
    "t5 tails": (50.0, [8] * 8, np.ones(40), 5, None, None),
    "first alone": (50.0, [16] * 4, np.ones(40), None, None, [0]),
    "first of two ranks": (50.0, [16] * 4, np.ones(40), None, None, [0, 2]),
}


@pytest.mark.parametrize("case", CASES)
def test_terms_are_unbiased(case, record_property):
    scale, sizes, spectrum, tails, factors, known = CASES[case]
    rng = np.random.default_rng(0)
    draw = None if tails is None else student(rng, tails)
    found = [terms(rng, 4000, scale, sizes, spectrum, draw, factors, known) for _ in range(10)]
    signal, trace = (np.concatenate(each) for each in zip(*found, strict=True))
    share = np.asarray(sizes) / sum(sizes)
    # T is B times the variance of the whole sum.
    mix = 1.0 if factors is None else float((np.asarray(factors) * share).sum())
    for name, values, truth in (("signal", signal, 1.0), ("trace", trace, scale * mix)):
        error = values.std() / math.sqrt(len(values))
        record_property(name, f"{values.mean():.4f} +- {error:.4f}, truth {truth:.4f}")
        assert abs(values.mean() - truth) < 4 * error
        assert error < 0.01 * truth


def test_groups_that_differ_are_what_the_formula_before_got_wrong(record_property):
    """[8] * 7 + [3], the last with four times the variance: 0.786 for 1 by equal covariances."""
    scale, sizes, spectrum, _, factors, _ = CASES["unequal groups"]
    rng = np.random.default_rng(1)
    share, batch = np.asarray(sizes) / sum(sizes), sum(sizes)
    counts = np.asarray(sizes, float)
    variance = np.asarray(factors) * scale / len(spectrum)
    noise = rng.standard_normal((40000, 8, len(spectrum)))
    groups = noise * np.sqrt(variance / counts)[:, None] + len(spectrum) ** -0.5
    groups = groups * share[:, None]
    large, each = np.square(groups.sum(1)).sum(1), np.square(groups).sum(2)
    old_trace = ((each * batch**2 / counts).sum(1) / batch - large) * batch / (len(sizes) - 1)
    old = (large - old_trace / batch).mean()
    signal, trace = noise_terms(large, each.sum(1), 1.0, np.square(share).sum(), batch)
    record_property("signal", f"before {old:.3f}, now {signal.mean():.3f}, truth 1")
    assert abs(old - 1) > 0.1
    assert signal.mean() == pytest.approx(1.0, abs=0.02)
    one = noise_terms_of(torch.from_numpy(groups[0]), sizes)
    assert [float(x) for x in one] == pytest.approx([signal[0], trace[0]], rel=1e-9)


def test_without_replacement_it_is_that_of_the_population(record_property):
    """N = 200 samples: the set's |G|^2 comes back with T / N, of the set itself."""
    rng = np.random.default_rng(2)
    data = rng.standard_normal((200, 30)) * 1.5 + 0.3
    mean = data.mean(0)
    spread = np.square(data - mean).sum() / 199
    found = []
    for _ in range(20000):
        groups = data[rng.permutation(200)[:64]].reshape(8, 8, 30).sum(1) / 64
        whole, parts = np.square(groups.sum(0)).sum(), np.square(groups).sum()
        found.append(noise_terms(whole, parts, 1.0, 1 / 8, 64))
    signal, trace = np.asarray(found).T
    error = signal.std() / math.sqrt(len(found))
    truth = np.square(mean).sum()
    of_set_signal = (signal + trace / 200).mean()
    record_property("signal of the set", f"{of_set_signal:.4f} +- {error:.4f}, truth {truth:.4f}")
    assert abs(signal.mean() - (np.square(mean).sum() - spread / 200)) < 4 * error
    assert abs((signal + trace / 200).mean() - np.square(mean).sum()) < 4 * error
    estimate = estimate_noise(signal, trace)
    of_set = spread / np.square(mean).sum()
    assert estimate.of_set(200).value == pytest.approx(of_set, rel=0.02)


@pytest.mark.parametrize(("groups", "x"), [(8, 0.8), (2, 0.8), (8, 3.0)])
def test_the_error_is_that_of_the_formula(groups, x, record_property):
    """relSE^2 = [2/(m-1) + 4x(1 + 1/(m-1)) + 2m/(m-1) x^2] / (K d), equal Gaussian groups."""
    rng = np.random.default_rng(3)
    steps, dimensions = 100, 40
    signal, trace = terms(
        rng, (400, steps), x * BATCH, [BATCH // groups] * groups, np.ones(dimensions)
    )
    found = [estimate_noise(s, t) for s, t in zip(signal, trace, strict=True)]
    values = np.array([one.value for one in found])
    m = groups
    formula = 2 / (m - 1) + 4 * x * (1 + 1 / (m - 1)) + 2 * m / (m - 1) * x * x
    expected = x * BATCH * math.sqrt(formula / (steps * dimensions))
    record_property("deviation over formula", f"{values.std() / expected:.3f}")
    assert values.std() == pytest.approx(expected, rel=0.1)
    assert np.mean([one.error for one in found]) == pytest.approx(expected, rel=0.15)
    assert values.mean() == pytest.approx(x * BATCH, rel=0.01)


@pytest.mark.parametrize("passes", [4, 8])
def test_the_first_pass_alone_costs_little(passes, record_property):
    """From a noise scale of three batches on its standard error is at most 1.7 times theirs."""
    rng = np.random.default_rng(11)
    found = {}
    for known in (None, [0]):
        signal, trace = terms(
            rng, (400, 60), 3.0 * BATCH, [BATCH // passes] * passes, np.ones(40), known=known
        )
        each = [estimate_noise(s, t) for s, t in zip(signal, trace, strict=True)]
        found[known is None] = np.std([one.value for one in each])
    record_property("standard errors, first over all", f"{found[False] / found[True]:.3f}")
    assert 1.2 < found[False] / found[True] < 1.7


def correlated(rng, shape):
    """Return numbers of variance 1 whose neighbours along the steps correlate by one half."""
    noise = rng.standard_normal(shape)
    for at in range(1, shape[1]):
        noise[:, at] = 0.5 * noise[:, at - 1] + math.sqrt(0.75) * noise[:, at]
    return noise


@pytest.mark.parametrize("steps", [50, 200])
@pytest.mark.parametrize("groups", [2, 8])
@pytest.mark.parametrize("x", [0.8, 8.0])
def test_intervals_cover(x, groups, steps, record_property):
    rng = np.random.default_rng(4)
    signal, trace = terms(
        rng, (400, steps), x * BATCH, [BATCH // groups] * groups, 1 / np.arange(1, 31)
    )
    found = [estimate_noise(s, t) for s, t in zip(signal, trace, strict=True)]
    covered = np.mean([one.low <= x * BATCH <= one.high for one in found])
    record_property("covered", f"{covered:.4f}")
    assert 0.91 <= covered <= 0.985, covered


def test_intervals_cover_correlated_steps(record_property):
    rng = np.random.default_rng(5)
    draws = correlated(rng, (400, 200, 2))
    signal, trace = 1 + 0.8 * draws[..., 0], 50 + 20 * draws[..., 1]
    found = [estimate_noise(s, t) for s, t in zip(signal, trace, strict=True)]
    covered = np.mean([one.low <= 50 <= one.high for one in found])
    record_property("covered", f"{covered:.4f}")
    assert 0.91 <= covered <= 0.98, covered
    assert np.mean([one.correlation for one in found]) == pytest.approx(0.49, abs=0.03)


def test_the_jackknife_takes_the_bias_of_a_ratio_out():
    rng = np.random.default_rng(6)
    signal, trace = terms(rng, (8000, 50), 50.0, [32, 32], 1 / np.arange(1, 31))
    plain = trace.mean(1) / signal.mean(1)
    found = np.array([estimate_noise(s, t).value for s, t in zip(signal, trace, strict=True)])
    bias, before = found.mean() - 50, plain.mean() - 50
    assert before > 4 * plain.std() / math.sqrt(8000), "no bias to take out"
    assert abs(bias) < 0.6 * before


def test_a_signal_that_may_be_zero_has_no_upper_end():
    rng = np.random.default_rng(7)
    trace, noise = 100 + rng.standard_normal(40), rng.standard_normal(40)
    weak = estimate_noise(0.01 + noise, trace)
    assert weak.high == math.inf and not weak.bounded and weak.error == math.inf
    # The largest signal that is not ruled out gives the lower end.
    most = noise.mean() + 0.01 + 2.02 * noise.std(ddof=1) / math.sqrt(40)
    assert weak.low == pytest.approx(100 / most, rel=0.1)
    # Twice as many steps at least, and as many as bring the standard error down to the signal.
    mean, error = noise.mean() + 0.01, noise.std(ddof=1) / math.sqrt(40)
    likely = mean if mean > 0 else 2.02 * error
    assert weak.wanted == pytest.approx(max(40 * (2.02 * error / likely) ** 2, 80), rel=0.02)
    least, more = "about" if mean > 0 else "at least", math.ceil(weak.wanted - 40)
    told = f"{least} {more:,} more measurements for an upper bound"
    assert weak.text() == f"> {weak.low:,.4g} samples; {told}"
    assert weak.of_set(500).high == 500.0
    below = estimate_noise(noise - 5, trace)
    assert below.value == below.high == math.inf
    nothing = estimate_noise(noise, noise[::-1].copy())
    assert (nothing.low, nothing.high) == (0.0, math.inf)
    assert nothing.text().startswith("not known yet; ") and "> 0" not in nothing.text()
    assert estimate_noise(noise[:3], trace[:3]) is None


def test_weights_are_worth_fewer_steps():
    rng = np.random.default_rng(8)
    weights = np.exp2(-np.arange(160)[::-1] / 15.0)
    signal, trace = terms(rng, (400, 160), 50.0, [16] * 4, np.ones(40))
    found = [estimate_noise(s, t, weights) for s, t in zip(signal, trace, strict=True)]
    assert found[0].steps == pytest.approx(2.885 * 15, rel=0.01)
    values = np.array([one.value for one in found])
    assert np.mean([one.error for one in found]) == pytest.approx(values.std(), rel=0.15)
    assert 0.91 <= np.mean([one.low <= 50 <= one.high for one in found]) <= 0.98


def test_of_layers_against_steps_themselves(record_property):
    """Five layers with noise scales from 14 to 10,900: half of the gain of an endless batch."""
    rng = np.random.default_rng(9)
    dimensions = np.array([40, 30, 20, 30, 40])
    scales = np.array([14.0, 60.0, 300.0, 1800.0, 10900.0])
    signal = np.array([4.0, 0.5, 0.1, 0.02, 0.002])
    lengths = np.array([1.0, 2.0, 1.5, 2.0, 1.0])
    trace = scales * signal
    found = layerwise_noise_scale(signal, trace, lengths)

    def gain(batch, steps=20000):
        total = np.zeros(steps)
        for d, g, t, s in zip(dimensions, signal, trace, lengths, strict=True):
            drawn = rng.standard_normal((steps, d)) * math.sqrt(t / d / batch)
            drawn[:, 0] += math.sqrt(g)
            total += s * math.sqrt(g) * drawn[:, 0] / np.linalg.norm(drawn, axis=1)
        return total.mean()

    most = float((lengths * np.sqrt(signal)).sum())
    batches = found * np.array([0.8, 0.9, 1.0, 1.1, 1.25])
    shares = np.array([(gain(batch) / most) ** 2 for batch in batches])
    crossed = float(np.exp(np.interp(0.5, shares, np.log(batches))))
    record_property("LARS", f"closed form {found:.1f}, steps drawn {crossed:.1f}")
    assert found == pytest.approx(crossed, rel=0.05)
    plain = trace.sum() / signal.sum()
    assert abs(plain / found - 1) > 0.2, "it is not the plain one"
    one = layerwise_noise_scale(signal[:1], trace[:1], lengths[:1])
    assert one == pytest.approx(14.0, rel=1e-9)
    assert layerwise_noise_scale(-signal, trace, lengths) == math.inf


def fed(record, rng, steps, scales=(20.0, 200.0)):
    for number in range(1, steps + 1):
        rows = [terms(rng, 1, scale, [16] * 4, np.ones(60)) for scale in scales]
        signal, trace = (np.array([float(row[i][0]) for row in rows]) for i in (0, 1))
        record.add(number * BATCH, signal, trace)


def test_a_record_stays_small_and_goes_on():
    rng = np.random.default_rng(10)
    long, short = (NoiseRecord(2, half_life) for half_life in (1e9, 30 * BATCH))
    for record in (long, short):
        fed(record, rng, 1500)
    rows = long.state()["rows"]
    assert len(rows) <= MOST and int(rows[:, 1].sum()) + len(long.state()["open"]) == 1500
    # 12 half-lives of 30 steps, and no more.
    assert len(short.state()["rows"]) == 361
    estimate = long.estimate()
    assert estimate.value == pytest.approx(110.0, abs=4 * estimate.error)
    assert estimate.error < 0.02 * 110
    assert long.of_layers()[0] == pytest.approx([1.0, 1.0], rel=0.05)
    layerwise = long.layerwise(np.array([True, True]))
    assert layerwise.low < 75.93 < layerwise.high and layerwise.error < 3
    again = NoiseRecord(2, 1e9)
    again.check(long.state())
    again.load(long.state())
    assert again.estimate() == estimate
    other = NoiseRecord(3, 1e9)
    other.check(long.state())
    other.load(long.state())
    assert other.estimate() is None, "of another source: begun anew"
    for wrong in (None, {}, {**long.state(), "rows": torch.zeros(3, 4)}, {"rows": 1}):
        with pytest.raises(ValueError, match="no record of a noise scale"):
            again.check(wrong)


def test_words():
    assert (
        NoiseEstimate(1204.0, 90.0, 980.2, 1530.0, 30, 0.0).text() == "1,204 [980.2, 1,530] samples"
    )
