"""How spectra and range tests are read."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from largebatch.lab.adamw_grid import slant
from largebatch.lab.grad_overlap import share
from largebatch.lab.hess_slq import density, within
from largebatch.lab.hess_top import outliers
from largebatch.lab.lr_range import largest_stable


@pytest.mark.parametrize("count", [6, 10, 25])
def test_outliers_stand_above_the_widest_gap(count: int) -> None:
    top = torch.logspace(1, 0.5, count, dtype=torch.float64)
    bulk = torch.logspace(-1, -3, 100, dtype=torch.float64)
    assert outliers(torch.cat((top, bulk)).sort().values) == count


def test_a_density_has_the_mass_of_its_weights() -> None:
    places, weights = torch.tensor([0.0, 5.0]), torch.tensor([3.0, 1.0])
    at = torch.linspace(-1, 1, 201)
    assert sum(density(places, weights, at, 0.1)) * 0.01 == pytest.approx(0.75, abs=1e-3)
    assert within(places, weights, 0.5) == 0.75


def test_the_share_of_a_gradient_in_a_space() -> None:
    plane = torch.eye(4)[:2]
    assert share(plane, torch.tensor([3.0, 4.0, 0.0, 0.0])) == pytest.approx(1)
    assert share(plane, torch.tensor([1.0, 1.0, 1.0, 1.0])) == pytest.approx(0.5)


def test_a_rate_is_stable_until_half_of_the_gain_is_lost() -> None:
    rates = [1.1**k for k in range(60)]
    losses = [2.0 - k / 30 for k in range(30)] + [1.0] * 10 + [1.0 + k for k in range(20)]
    assert 36 <= rates.index(largest_stable(rates, losses)) <= 40
    assert largest_stable(rates, [*losses[:45], math.nan]) <= rates[44]
    assert largest_stable(rates, losses[:40]) >= rates[35]  # nothing lost: the last


def test_a_basin_along_the_axes_has_no_slant() -> None:
    ten = np.logspace(-3, -1, 9)
    x, y = np.meshgrid(np.log(ten), np.log(ten), indexing="ij")
    middle = x.mean()
    along = 1 + 0.02 * ((x - middle) ** 2 + (y - middle) ** 2)
    across = 1 + 0.02 * ((x + y - 2 * middle) ** 2 * 4 + (x - y) ** 2)
    assert abs(slant(ten, ten, along)) < 0.01
    assert slant(ten, ten, across) == pytest.approx(-0.5, abs=0.05)  # -0.6 of a whole ellipse
