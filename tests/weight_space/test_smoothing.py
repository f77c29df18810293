"""The smoothed loss: of a quadratic the quadratic and a constant."""

from __future__ import annotations

import math

import pytest
import torch

from largebatch.weight_space import Weights, gaussian_noise, smoothed_loss

H = torch.diag(torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64))
H[0, 1] = H[1, 0] = 0.5


def quadratic(weights: Weights) -> float:
    return float(0.5 * weights["w"] @ H @ weights["w"])


def noise(number: int) -> Weights:
    return gaussian_noise({"w": torch.zeros(3, dtype=torch.float64)}, 100 + number)


def at(*values: float) -> Weights:
    return {"w": torch.tensor(values, dtype=torch.float64)}


@pytest.mark.parametrize("width", [0.1, 2.0])
def test_a_quadratic_gains_a_constant(width: float) -> None:
    """The constant is the same at every centre to rounding, and width^2 tr H / 2 within 4 SE."""
    gains = []
    for centre in (at(0, 0, 0), at(1, -2, 3), at(-5, 0.1, 40)):
        found = smoothed_loss(quadratic, centre, width, 400, noise)
        gains.append(found.value - quadratic(centre))
    assert gains[1:] == pytest.approx([gains[0]] * 2, rel=1e-9)
    at_zero = smoothed_loss(quadratic, at(0, 0, 0), width, 400, noise)
    assert abs(gains[0] - 0.5 * width**2 * float(H.trace())) < 4 * at_zero.error
    assert at_zero.error < 0.1 * gains[0]


@pytest.mark.parametrize("temperature", [None, 0.5])
def test_without_width_it_is_the_loss(temperature: float | None) -> None:
    here = at(1, 2, 3)
    assert smoothed_loss(quadratic, here, 0.0, 4, noise, temperature).value == quadratic(here)
    near = smoothed_loss(quadratic, here, 1e-6, 4, noise, temperature)
    assert near.value == pytest.approx(quadratic(here), rel=1e-9)


def test_local_entropy_of_a_quadratic_is_known() -> None:
    """-T log E exp(-x^2 h / 2 T) with x ~ N(0, s^2) is T/2 log(1 + s^2 h / T)."""
    h, width, heat = 3.0, 0.7, 0.9
    found = smoothed_loss(
        lambda w: 0.5 * h * float(w["w"]) ** 2,
        {"w": torch.zeros((), dtype=torch.float64)},
        width,
        4000,
        lambda k: gaussian_noise({"w": torch.zeros((), dtype=torch.float64)}, k),
        heat,
    )
    expected = heat / 2 * math.log1p(width**2 * h / heat)
    assert abs(found.value - expected) < 4 * found.error < 0.1 * expected
