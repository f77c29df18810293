"""The gain of a doubling against draws of the true gradient, for every kind of direction."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from largebatch.optim import LAMB, LARS, SGD, MuonWithAuxiliary
from largebatch.probes.directions import direction_of, orthogonal
from largebatch.probes.doubling import Doubling, control_terms, gain
from largebatch.probes.noise_estimate import estimate_noise

SHAPES = [(20, 30), (40, 10), (60,), (30, 8)]
SIZES = [1.0, 0.3, 2.0, 0.7]  # of a layer's true gradient
NOISES = [3.0, 6.0, 5.0, 9.0]  # of one sample, as a share of it, in length
BATCH = 64


def layers() -> list[torch.nn.Parameter]:
    torch.manual_seed(1)
    return [torch.nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in SHAPES]


def truth() -> list[torch.Tensor]:
    torch.manual_seed(2)
    found = [torch.randn(shape, dtype=torch.float64) for shape in SHAPES]
    return [g / g.norm() * size for g, size in zip(found, SIZES, strict=True)]


def drawn(mean: list[torch.Tensor], samples: int) -> list[torch.Tensor]:
    return [
        g + noise * size / math.sqrt(g.numel() * samples) * torch.randn_like(g)
        for g, noise, size in zip(mean, NOISES, SIZES, strict=True)
    ]


def optimizer_of(name: str, params: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    if name == "muon":
        matrices = [p for p in params if p.ndim == 2]
        rest = [p for p in params if p.ndim != 2]
        return MuonWithAuxiliary([{"params": matrices, "muon": True}, {"params": rest}])
    kinds = {"sgd": SGD, "adam": torch.optim.Adam, "lars": LARS, "lamb": LAMB}
    return kinds[name](params, lr=0.1)


@pytest.mark.parametrize("name", ["sgd", "adam", "lars", "lamb", "muon"])
def test_the_control_is_right_about_any_direction(name: str, record_property: Any) -> None:
    params, mean = layers(), truth()
    direction = direction_of(optimizer_of(name, params), params)
    torch.manual_seed(3)

    def follows(samples: int) -> tuple[float, float]:
        found = np.array(
            [
                sum(
                    float((g * p).sum())
                    for g, p in zip(mean, direction(drawn(mean, samples)), strict=True)
                )
                for _ in range(1000)
            ]
        )
        return found.mean(), found.std() / math.sqrt(len(found))

    terms = np.array(
        [
            [
                float(term)
                for term in control_terms([drawn(mean, BATCH // 4) for _ in range(4)], direction)
            ]
            for _ in range(250)
        ]
    )
    error = terms.std(0) / math.sqrt(len(terms))
    for place, samples in enumerate((BATCH // 4, BATCH // 2)):
        value, its_error = follows(samples)
        off = (terms[:, place].mean() - value) / math.hypot(error[place], its_error)
        record_property(f"standard errors off at {samples}", f"{off:.2f}")
        assert abs(off) < 3
        assert error[place] < 0.05 * value
    ratio = estimate_noise(terms[:, 0], terms[:, 1])
    assert ratio is not None and ratio.bounded
    value, low, high = gain(ratio)
    expected = (follows(BATCH // 2)[0] / follows(BATCH // 4)[0]) ** 2 - 1
    assert low - 0.02 < expected < high + 0.02
    assert high - low < 0.25


def test_a_doubling_at_the_noise_scale_gains_a_third() -> None:
    mean = [torch.zeros(4000, dtype=torch.float64)]
    mean[0][0] = 1.0
    direction = direction_of(SGD([torch.nn.Parameter(mean[0].clone())], lr=0.1), mean)
    torch.manual_seed(0)
    rows = []
    for _ in range(300):
        quarters = [[g + torch.randn_like(g) / math.sqrt(g.numel()) for g in mean] for _ in "1234"]
        rows.append([float(term) for term in control_terms(quarters, direction)])
    found = estimate_noise(*np.array(rows).T)
    assert found is not None
    value, low, high = gain(found)
    assert low < 1 / 3 < high and high - low < 0.1 and value == pytest.approx(1 / 3, abs=0.05)


@pytest.mark.parametrize("shape", [(8, 5), (5, 8), (6, 6)])
def test_orthogonal_comes_near_to_one_singular_value(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
    assert float(values.min()) > 0.6 and float(values.max()) < 1.25
    one = torch.randn(shape)
    assert torch.allclose(orthogonal(one.T), orthogonal(one).T, atol=1e-5)


def test_nothing_of_it_is_on_file_before_it_is_known() -> None:
    made = object.__new__(Doubling)
    from largebatch.probes.noise_record import NoiseRecord
    from largebatch.schedule import Phase, Step

    made.record = NoiseRecord(1, 1e9)
    step = Step(0, 64, 0, 0, Phase(64))
    for number in range(1, 4):
        assert made.write(step, number, {"row": [1.0, 1.2]}) == {}
    rng = np.random.default_rng(0)
    line: Any = {}
    for number in range(4, 40):
        noise = rng.standard_normal(2) * 0.05
        line = made.write(step, number, {"row": [1.0 + noise[0], 1.2 + noise[1]]})
    assert line["doubling_gain"] == pytest.approx(0.44, abs=0.06)
    assert line["doubling_gain_low"] < 0.44 < line["doubling_gain_high"]
    assert made.write(step, 40, {"row": [math.nan, 1.0]}) == {}
