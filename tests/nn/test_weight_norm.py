"""Weight norm, plain and bounded: values, gradients, norms that cannot move, conversions."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from largebatch._errors import UserError
from largebatch.nn import (
    BoundedWeightNorm,
    ChannelBias,
    NormConfig,
    WeightNorm,
    apply_norm,
    convert_batch_norm,
)
from largebatch.nn.weight_norm import FORMS, channel_norms
from largebatch.optim import SGD, param_groups

SHAPES = ((4, 3), (4, 3, 2), (4, 3, 2, 2), (4, 2, 1, 2, 2))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(),
        nn.Linear(96, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3),
    )  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_the_published_formulas(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, dtype=torch.float64)
    v, g = torch.randn(shape, dtype=torch.float64), torch.randn(shape[0], dtype=torch.float64)
    for form in (WeightNorm, BoundedWeightNorm):
        torch.testing.assert_close(form(weight)(*form(weight).right_inverse(weight)), weight)
    for i in range(shape[0]):
        direction = v[i] / v[i].norm()
        torch.testing.assert_close(WeightNorm(weight)(v, g)[i], g[i] * direction)
        bounded = weight.norm() * g[i] / g.norm() * direction
        torch.testing.assert_close(BoundedWeightNorm(weight)(v, g)[i], bounded)
        rho = torch.stack([channel.norm() for channel in weight]).mean()
        equal = BoundedWeightNorm(weight, gain=False)(v)
        torch.testing.assert_close(equal[i], rho * direction)


def test_plain_weight_norm_is_that_of_torch() -> None:
    ours, theirs = nn.Conv2d(3, 4, 3).double(), nn.Conv2d(3, 4, 3).double()
    theirs.load_state_dict(ours.state_dict())
    parametrize.register_parametrization(ours, "weight", WeightNorm(ours.weight))
    nn.utils.parametrizations.weight_norm(theirs)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    for layer in (ours, theirs):
        layer(x).square().sum().backward()
    mine, its = ours.parametrizations.weight, theirs.parametrizations.weight
    torch.testing.assert_close(mine.original0.grad, its.original1.grad)
    torch.testing.assert_close(mine.original1.grad, its.original0.grad.flatten())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", FORMS)
def test_gradients(kind: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    form: Any = FORMS[kind](torch.randn(shape, dtype=torch.float64))
    v = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    g = torch.randn(shape[0], dtype=torch.float64, requires_grad=True)
    inputs = (v,) if kind == "equal_weight" else (v, g)
    assert torch.autograd.gradcheck(form, inputs)
    assert torch.autograd.gradgradcheck(form, inputs)
    upstream = torch.randn(shape, dtype=torch.float64)
    weight = form(*inputs)
    of_v, *of_g = torch.autograd.grad(weight, inputs, upstream)
    # The lecture's forms: orthogonal to v; M_w projects the weight out of the upstream gradient.
    torch.testing.assert_close((of_v * v).flatten(1).sum(1), torch.zeros(shape[0]).double())
    flat, rows, up = of_v.flatten(1), weight.detach().flatten(1), upstream.flatten(1)
    along = (rows * up).sum(1, keepdim=True) / rows.square().sum(1, keepdim=True)
    sides = v.detach().flatten(1)  # gains may be negative, so the factor has a sign
    scale = (rows * sides).sum(1, keepdim=True) / sides.square().sum(1, keepdim=True)
    torch.testing.assert_close(flat, scale * (up - along * rows))
    if kind == "weight":
        torch.testing.assert_close(of_g[0], (up * v.detach().flatten(1)).sum(1) / channel_norms(v))
    if kind == "bounded_weight":  # scaling all gains changes nothing
        torch.testing.assert_close((of_g[0] * g).sum(), torch.zeros(()).double())


def train(model: nn.Module, steps: int) -> list[Tensor]:
    """Take steps of SGD with decay on everything that decays; return the weights' norms."""
    optimizer = SGD(param_groups(model, 0.1), lr=0.3, momentum=0.9)
    x = torch.randn(16, 2, 6, 6, dtype=torch.float64)
    seen = []
    for step in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), torch.arange(16) * (step + 1) % 3).backward()
        optimizer.step()
        seen.append(torch.stack([model[0].weight.detach().norm(), model[4].weight.detach().norm()]))
    return seen


def test_bounded_norms_stay_and_plain_ones_move() -> None:
    for kind, stays in (("bounded_weight", True), ("equal_weight", True), ("weight", False)):
        model = convert_batch_norm(net(), kind).double()
        before = model[0].weight.detach().clone()
        start = torch.stack([model[0].weight.detach().norm(), model[4].weight.detach().norm()])
        norms = torch.stack(train(model, 10))
        still = torch.allclose(norms, start.expand_as(norms), rtol=1e-12, atol=0)
        assert still is stays
        assert not torch.allclose(model[0].weight, before, rtol=0.05)
        each = channel_norms(model[0].weight.detach())
        assert torch.allclose(each, each.mean(), rtol=1e-12) is (kind == "equal_weight")


@pytest.mark.parametrize("kind", FORMS)
def test_conversion_spares_the_classifier_and_keeps_biases(kind: str) -> None:
    model, plain = net(), net()
    nn.init.uniform_(model[1].bias)
    bias = model[1].bias
    convert_batch_norm(model, kind)
    assert isinstance(model[1], ChannelBias)
    assert model[1].bias is bias
    assert [parametrize.is_parametrized(m) for m in (model[0], model[4], model[7])] == [
        True, True, False,
    ]  # fmt: skip
    if kind != "equal_weight":  # training starts from the model's own weights
        torch.testing.assert_close(model[0].weight, plain[0].weight)
    decay, rest = param_groups(model, 0.1)
    assert all(p.ndim > 1 for _, p in decay["params"])
    assert sum(name.endswith("original1") for name, _ in rest["params"]) == 2 * (
        kind != "equal_weight"
    )
    state = copy.deepcopy(model.state_dict())
    train(model.double(), 2)
    other = convert_batch_norm(net(), kind)
    for values in (copy.deepcopy(model.state_dict()), state):
        x = torch.randn(3, 2, 6, 6, dtype=values["1.bias"].dtype)
        other.to(x.dtype).load_state_dict(values)
        expected = other(x)
        model.to(x.dtype).load_state_dict(values)
        torch.testing.assert_close(model(x), expected)
    assert sum(key.endswith("rho") for key in state) == 2 * (kind != "weight")


def test_a_model_without_batch_norm_keeps_its_weights() -> None:
    layer = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    apply_norm(layer, NormConfig(kind="weight"))
    assert not parametrize.is_parametrized(layer[0])


def test_assignment_takes_the_fixed_norm() -> None:
    layer = nn.Linear(3, 4)
    parametrize.register_parametrization(layer, "weight", BoundedWeightNorm(layer.weight))
    before = layer.weight.detach().norm()
    layer.weight = 7 * torch.randn(4, 3)
    torch.testing.assert_close(layer.weight.norm(), before)


def test_mistakes() -> None:
    weight = torch.randn(3, 2)
    weight[1] = 0
    for form in FORMS.values():
        with pytest.raises(ValueError, match="no direction"):
            form(weight)
    scaled = net()
    nn.init.zeros_(scaled[1].weight)
    with pytest.raises(UserError, match=r"norm\.kind=bounded_weight: .*model.residual_gamma"):
        convert_batch_norm(scaled, "bounded_weight")
    with pytest.raises(UserError, match=r"norm\.ghost_size=8: no effect with norm.kind=weight"):
        convert_batch_norm(net(), "weight", ghost_size=8)


@pytest.mark.parametrize("kind", FORMS)
def test_compiles_whole(kind: str) -> None:
    model = convert_batch_norm(net(), kind)
    x = torch.randn(4, 2, 6, 6)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
