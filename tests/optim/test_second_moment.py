"""The update's length after the batch has grown fourfold."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from largebatch.optim import LAMB, has_second_moment, scale_second_moment

SMALL, LARGE = 16, 64
SIGNAL, NOISE = 0.05, 1.0  # of an element: its mean, and the deviation of one sample


def lengths(name: str, beta2: float, corrected: bool) -> list[float]:
    """Return the mean length of the moments' ratio for 200 steps after 16 -> 64, by step."""
    torch.manual_seed(0)
    model = torch.nn.Linear(100, 400, bias=False, dtype=torch.float64)
    kind = {"adam": torch.optim.Adam, "lamb": LAMB}[name]
    optimizer = kind(model.parameters(), lr=0.0, betas=(0.9, beta2), eps=1e-12)
    param = model.weight

    def step(batch: int) -> float:
        param.grad = SIGNAL + NOISE / batch**0.5 * torch.randn_like(param)
        optimizer.step()
        state = optimizer.state[param]
        count = float(state["step"]) if "step" in state else 1e9
        correct = (1 - beta2**count) ** 0.5 / (1 - 0.9**count)
        return float((state["exp_avg"] / state["exp_avg_sq"].sqrt()).norm()) * correct

    # The stationary second moment, without the thousands of steps that beta2 = 0.999 takes to it.
    for _ in range(30):
        step(SMALL)
    state = optimizer.state[param]
    many = 200_000
    if "step" in state:
        state["step"] = torch.as_tensor(float(many)) if torch.is_tensor(state["step"]) else many
    state["exp_avg_sq"].fill_(SIGNAL**2 + NOISE**2 / SMALL)
    if corrected:
        factor = (SIGNAL**2 + NOISE**2 / LARGE) / (SIGNAL**2 + NOISE**2 / SMALL)
        assert has_second_moment(optimizer)
        scale_second_moment(optimizer, model, {"weight": factor})
    return [step(LARGE) for _ in range(200)]


def stationary() -> float:
    """Return E m^2 / E g^2 after long: G^2 + s^2/B (1 - b1)/(1 + b1) over G^2 + s^2/B."""
    noise = NOISE**2 / LARGE
    return ((SIGNAL**2 + noise * 0.1 / 1.9) / (SIGNAL**2 + noise)) ** 0.5 * 40_000**0.5


@pytest.mark.parametrize("name", ["adam", "lamb"])
@pytest.mark.parametrize("beta2", [0.99, 0.999])
def test_the_update_has_its_length_from_the_tenth_step_on(
    name: str, beta2: float, record_property: Callable[[str, object], None]
) -> None:
    target = stationary()
    found = [each / target for each in lengths(name, beta2, corrected=True)]
    record_property("off, corrected", f"{max(abs(each - 1) for each in found[10:]):.4f}")
    assert all(abs(each - 1) < 0.05 for each in found[10:])
    plain = [each / target for each in lengths(name, beta2, corrected=False)]
    record_property("length at step 20, plain", f"{plain[20]:.3f}")
    assert plain[20] < 0.75  # the second moment remembers the noise of small batches


def test_names_choose_and_others_take_the_rest() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    optimizer = torch.optim.AdamW(model.parameters(), amsgrad=True)
    assert not has_second_moment(optimizer)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    before = [
        {key: value.clone() for key, value in optimizer.state[param].items()}
        for param in model.parameters()
    ]
    scale_second_moment(optimizer, model, {"0.weight": 0.25, "*": 0.5})
    for (name, param), old in zip(model.named_parameters(), before, strict=True):
        new, factor = optimizer.state[param], 0.25 if name == "0.weight" else 0.5
        assert torch.equal(new["exp_avg"], old["exp_avg"])
        assert torch.equal(new["exp_avg_sq"], old["exp_avg_sq"] * factor)
        assert torch.equal(new["max_exp_avg_sq"], old["max_exp_avg_sq"] * factor)
