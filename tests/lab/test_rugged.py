"""Rugged functions: smoothed in closed form as by integration, and what rolls down them."""

from __future__ import annotations

import numpy as np
import pytest

from largebatch.lab.rugged import AT, Rugged, minima, rolled, tracked


@pytest.mark.parametrize("width", [0.1, 0.5])
def test_the_closed_form_is_the_integral(width: float) -> None:
    loss = Rugged(3)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    for x in (-2.0, 0.3, 4.1):
        mean = (loss(x + width * nodes) * weights).sum() / weights.sum()
        assert mean == pytest.approx(float(loss(np.array(x), width)), abs=1e-9)


def test_one_rolls_into_a_minimum_and_the_widest_has_one() -> None:
    loss = Rugged(0)
    values = loss(AT)
    found = minima(values)
    assert len(found) > 5 and len(minima(loss(AT, 5.0))) == 1
    assert {rolled(values, int(place)) for place in found} == set(found.tolist())
    assert tracked(loss, [5.0, 0.0]) in found
