"""Curves against golden values of their papers and of MLPerf's code."""

import math

import pytest

from largebatch.schedule import Timeline, curves, cyclical, multistep, poly, sgdr
from largebatch.schedule.config import ScheduleConfig
from largebatch.schedule.sgdr import cycle_ends

PI = math.pi


def test_every_curve_is_registered_with_a_summary():
    assert set(curves.names()) == {"constant", "multistep", "poly", "cosine", "sgdr", "cyclical"}
    assert all(entry.summary for entry in curves)


@pytest.mark.parametrize("name", ["constant", "multistep", "poly", "cosine", "sgdr"])
def test_at_the_end_of_the_warm_up_every_decay_is_at_its_peak(name):
    config = ScheduleConfig(curve=name, end=0.001)
    curve = curves.entry(name).factory(config, Timeline(1000, 100, 10, (300, 600), 200))
    assert curve(100, 0.5) == pytest.approx(0.5)
    assert 0 <= curve(1000, 0.5) <= 0.5


def test_multistep_counts_a_milestone_from_its_own_sample():
    rates = [multistep(samples, 1.0, (30, 60), 0.1) for samples in (0, 29, 30, 59, 60, 99)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_poly_is_mlperfs():
    golden = {50: 10, 51: 9.802962, 52: 9.607886, 100: 2.549825, 149: 0.004021, 150: 0.001080}
    for step, rate in golden.items():
        assert poly(step * 32, 10, 50 * 32, 150 * 32, 32, 1e-4, 2.0) == pytest.approx(
            rate, abs=5e-7
        )


def test_cosine_halves_at_half_time():
    curve = curves.entry("cosine").factory(ScheduleConfig(end=0.1), Timeline(1100, 100))
    assert [curve(s, 1.0) for s in (100, 600, 1100, 1200)] == pytest.approx([1, 0.55, 0.1, 0.1])


def test_sgdr_restarts_at_the_sums_of_its_periods():
    t0, mult = 10, 2.0
    restarts = [0, t0, t0 * (1 + 2), t0 * (1 + 2 + 4)]
    for restart in restarts:
        assert sgdr(restart, 0.05, 0, t0, mult, 0.0) == pytest.approx(0.05)
    for index, restart in enumerate(restarts[1:]):
        length = t0 * 2**index
        assert sgdr(restart - length // 2, 0.05, 0, t0, mult, 0.0) == pytest.approx(0.025)
        before = 0.025 * (1 + math.cos(PI * (length - 1) / length))
        assert sgdr(restart - 1, 0.05, 0, t0, mult, 0.0) == pytest.approx(before)
    assert cycle_ends(0, 100, t0, mult) == [10, 30, 70, 100]


def test_equal_cycles_are_the_curve_of_snapshot_ensembles():
    total, cycles, alpha = 1003, 5, 0.2
    cycle = math.ceil(total / cycles)
    for samples in range(total):
        expected = alpha / 2 * (math.cos(PI * (samples % cycle) / cycle) + 1)
        assert sgdr(samples, alpha, 0, cycle, 1.0, 0.0) == pytest.approx(expected, abs=1e-15)
    assert cycle_ends(0, total, cycle, 1.0) == [201, 402, 603, 804, 1003]


def test_cyclical_peaks_at_its_step_size():
    rates = [cyclical(t, 0.006, 0, 2000, 0.001) for t in (0, 1000, 2000, 3000, 4000, 6000)]
    assert rates == pytest.approx([0.001, 0.0035, 0.006, 0.0035, 0.001, 0.006])
    halved = [cyclical(t, 0.006, 0, 2000, 0.001, "triangular2") for t in (2000, 6000, 10_000)]
    assert halved == pytest.approx([0.006, 0.0035, 0.00225])


def test_exp_range_is_the_papers_with_its_factor_per_step():
    per_step, stepsize, low, high = 0.99994, 2000, 0.001, 0.006
    for t in (0, 500, 2000, 4321, 9000):
        cycle = math.floor(1 + t / (2 * stepsize))
        height = max(0.0, 1 - abs(t / stepsize - 2 * cycle + 1))
        expected = low + (high - low) * height * per_step**t
        gamma = per_step ** (2 * stepsize)
        assert cyclical(t, high, 0, stepsize, low, "exp_range", gamma) == pytest.approx(expected)
