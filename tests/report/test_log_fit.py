"""Lines against the logarithm of steps."""

from __future__ import annotations

import math
import random

import pytest

from largebatch.report.log_fit import log_fit

STEPS = sorted({round(1.2**power) for power in range(45)})


def test_a_line_is_found_and_its_error_covers() -> None:
    generator = random.Random(0)
    inside = 0
    for _ in range(100):
        distances = [2 + 1.5 * math.log(s) + generator.gauss(0, 0.1) for s in STEPS]
        fit = log_fit(STEPS, distances)
        assert fit is not None and fit.r2 > 0.99 and fit.slope == pytest.approx(1.5, abs=0.1)
        inside += abs(fit.slope - 1.5) < 2.0 * fit.slope_error
    assert 88 <= inside <= 100


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_the_exponent_is_recovered(gamma: float) -> None:
    fit = log_fit(STEPS, [3 * math.log(s) ** (1 / gamma) if s > 1 else 0.0 for s in STEPS])
    assert fit is not None and fit.exponent == pytest.approx(1 / gamma, rel=1e-9)
    assert (fit.r2 > 1 - 1e-9) == (gamma == 1.0)
    assert f"(ln steps)^{1 / gamma:.2f}" in fit.text()


def test_too_few_points_have_none() -> None:
    assert log_fit([1, 2, 3, 4, 5], [1.0] * 5) is None
    assert log_fit(STEPS, [0.0] * len(STEPS)) is None
