"""Sharpness-aware minimization: the gradient it takes, and what a step leaves untouched."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from largebatch._errors import UserError
from largebatch.nn import GhostBatchNorm
from largebatch.optim import LAMB, SAM, SGD

RHO = 0.05


def quadratic() -> tuple[Tensor, nn.Parameter, Callable[[torch.optim.Optimizer], Callable]]:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    hessian = root @ root.T / 6
    param = nn.Parameter(torch.randn(6, generator=generator, dtype=torch.float64))

    def closure_for(optimizer: torch.optim.Optimizer) -> Callable[[], Tensor]:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = 0.5 * param @ hessian @ param
            loss.backward()
            return loss

        return closure

    return hessian, param, closure_for


def test_the_gradient_on_a_quadratic() -> None:
    hessian, param, closure_for = quadratic()
    sam = SAM(SGD([param], lr=0.1, momentum=0.9), nn.Module(), RHO)
    closure = closure_for(sam)
    w, buffer = param.detach().clone(), torch.zeros(6, dtype=torch.float64)
    for _ in range(10):
        gradient = hessian @ w
        buffer = 0.9 * buffer + hessian @ (w + RHO * gradient / gradient.norm())
        before = 0.5 * w @ hessian @ w
        w = w - 0.1 * buffer
        loss = sam.step(closure)
        torch.testing.assert_close(loss.detach(), before, rtol=1e-12, atol=0)
        torch.testing.assert_close(param.detach(), w, rtol=1e-12, atol=1e-12)


def test_rho_zero_is_the_optimizer_itself() -> None:
    paths = []
    for sharp in (False, True):
        _, param, closure_for = quadratic()
        optimizer: torch.optim.Optimizer = LAMB([param], 0.01)
        if sharp:
            optimizer = SAM(optimizer, nn.Module(), 0.0)
        for _ in range(5):
            optimizer.step(closure_for(optimizer))
        paths.append(param.detach())
    assert torch.equal(*paths)


def net(ghost: bool) -> nn.Module:
    torch.manual_seed(0)
    norm = GhostBatchNorm(8, 4) if ghost else nn.BatchNorm1d(8)
    return nn.Sequential(nn.Linear(5, 8), norm, nn.ReLU(), nn.Linear(8, 3))


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(16, 5, generator=generator)
    return inputs, torch.randint(0, 3, (16,), generator=generator)


@pytest.mark.parametrize("ghost", [False, True])
def test_statistics_are_those_of_the_first_pass(ghost: bool) -> None:
    model, plain = net(ghost), net(ghost)
    inputs, targets = batch()
    sam = SAM(SGD(model.parameters(), lr=0.1), model, rho=5.0)
    means = []

    def closure() -> Tensor:
        sam.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        means.append(model[1].running_mean.clone())
        return loss

    sam.step(closure)
    plain(inputs)
    assert not torch.equal(means[0], means[1])  # the second pass did feed the norm
    for name, buffer in plain.named_buffers():
        assert torch.equal(buffer, model.get_buffer(name)), name


@pytest.mark.parametrize("overflow", [False, True])
def test_with_a_scaler_and_accumulation(overflow: bool) -> None:
    model, plain = net(False)[0], net(False)[0]  # one linear layer: halves of a batch add up
    inputs, targets = torch.randn(16, 5), torch.randn(16, 8)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    sam = SAM(SGD(model.parameters(), lr=0.1, momentum=0.9), model, RHO)
    exact = SAM(SGD(plain.parameters(), lr=0.1, momentum=0.9), plain, RHO)
    before = [param.detach().clone() for param in model.parameters()]

    def gradients() -> None:
        sam.zero_grad()
        for part in (slice(0, 8), slice(8, 16)):
            loss = (model(inputs[part]) - targets[part]).square().sum() / 16
            scaler.scale(loss * (float("inf") if overflow else 1.0)).backward()

    def closure() -> Tensor:
        exact.zero_grad()
        loss = (plain(inputs) - targets).square().sum() / 16
        loss.backward()
        return loss

    gradients()
    with sam.perturbed():
        gradients()
    scaler.step(sam)
    scaler.update()
    if overflow:
        for param, old in zip(model.parameters(), before, strict=True):
            assert torch.equal(param.detach(), old)
        assert scaler.get_scale() == 2.0**9
        return
    exact.step(closure)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_weights_come_back_after_an_exception() -> None:
    _, param, closure_for = quadratic()
    sam = SAM(SGD([param], lr=0.1), nn.Module())
    closure_for(sam)()
    before = param.detach().clone()
    moved = []

    def second_pass() -> None:
        with sam.perturbed():
            moved.append(param.detach() - before)
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        second_pass()
    assert moved[0].norm().item() == pytest.approx(RHO, rel=1e-12)
    assert torch.equal(param.detach(), before)


def test_a_zero_gradient_perturbs_nothing() -> None:
    param = nn.Parameter(torch.ones(3))
    param.grad = torch.zeros(3)
    sam = SAM(SGD([param], lr=0.1), nn.Module())
    with sam.perturbed():
        assert torch.equal(param.detach(), torch.ones(3))


def test_state_groups_and_schedulers_are_the_optimizers_own() -> None:
    _, param, closure_for = quadratic()
    base = SGD([param], lr=0.1, momentum=0.9)
    sam = SAM(base, nn.Module())
    scheduler = torch.optim.lr_scheduler.StepLR(sam, 1, 0.5)
    sam.step(closure_for(sam))
    scheduler.step()
    assert base.param_groups[0]["lr"] == 0.05
    saved = sam.state_dict()
    _, other, other_closure = quadratic()
    with torch.no_grad():
        other.copy_(param)
    again = SAM(SGD([other], lr=1.0, momentum=0.9), nn.Module())
    again.load_state_dict(saved)
    sam.step(closure_for(sam))
    again.step(other_closure(again))
    assert torch.equal(param, other)
    again.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    assert len(again.optimizer.param_groups) == len(again.param_groups) == 2


@pytest.mark.parametrize("option", [{"rho": -1.0}, {"rho": float("nan")}, {"scope": "node"}])
def test_wrong_settings_are_refused(option: dict) -> None:
    with pytest.raises(UserError, match="SAM: "):
        SAM(SGD([nn.Parameter(torch.zeros(2))]), nn.Module(), **option)
