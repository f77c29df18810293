"""The fixed classifiers: published logits, what is learned, what is saved, whom they refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from largebatch._errors import UserError
from largebatch.nn import FixedClassifier, find_classifier, fix_classifier

KINDS: tuple[Any, ...] = ("hadamard", "orthonormal")


def parity(number: int) -> int:
    return bin(number).count("1") % 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("features", "classes"), [(64, 10), (48, 40), (33, 64), (20, 3), (4, 4)])
def test_the_published_logits(kind: Any, features: int, classes: int) -> None:
    torch.manual_seed(0)
    layer = FixedClassifier(features, classes, kind, dtype=torch.float64)
    nn.init.uniform_(layer.scale, 1, 2)
    nn.init.uniform_(layer.bias)
    if kind == "hadamard":
        q = torch.tensor([[(-1.0) ** parity(i & j) for j in range(features)]
                          for i in range(classes)]).double()  # fmt: skip
        assert len(q.unique(dim=0)) == classes
    else:
        q = layer.weight
        gram = q @ q.T if classes <= features else q.T @ q
        torch.testing.assert_close(gram, torch.eye(len(gram), dtype=torch.float64))
    x = torch.randn(2, 5, features, dtype=torch.float64)
    expected = layer.scale * F.normalize(x, dim=-1) @ q.T + layer.bias
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer(3 * x), expected)  # the features' size does not matter
    target = torch.arange(5) % classes
    p = layer.scale * (x[0] / x[0].norm(dim=1, keepdim=True)) @ q.T + layer.bias
    lecture = -p[torch.arange(5), target] + p.exp().sum(1).log()  # its sign of b_t is a misprint
    torch.testing.assert_close(F.cross_entropy(layer(x[0]), target), lecture.mean())


def test_a_whole_hadamard_classifier_is_orthogonal() -> None:
    layer = FixedClassifier(32, 32, bias=False).double()
    nn.init.ones_(layer.scale)
    h = layer(torch.eye(32, dtype=torch.float64)).T
    assert torch.equal(h.abs(), torch.ones_like(h))
    torch.testing.assert_close(h @ h.T, 32 * torch.eye(32).double())
    assert layer.bias is None


@pytest.mark.parametrize("kind", KINDS)
def test_only_scale_and_bias_are_learned(kind: Any) -> None:
    torch.manual_seed(0)
    layer = FixedClassifier(12, 9, kind, dtype=torch.float64)
    assert {n: tuple(p.shape) for n, p in layer.named_parameters()} == {"scale": (), "bias": (9,)}
    x = torch.randn(3, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, scale, bias: torch.func.functional_call(
            layer, {"scale": scale, "bias": bias}, (x,)
        ),
        (x, layer.scale, layer.bias),
    )
    start = float(layer.scale.detach())
    assert start == pytest.approx(1 / 3 if kind == "hadamard" else 10.0)
    assert bool(layer.bias.any()) == (kind == "hadamard")
    assert float(layer.bias.detach().abs().max()) <= 1 / math.sqrt(9)


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_holds_all_and_no_matrix_of_hadamard(kind: Any) -> None:
    torch.manual_seed(0)
    first = FixedClassifier(100, 60, kind)
    state = torch.get_rng_state()
    second = FixedClassifier(100, 60, kind)
    assert kind == "orthonormal" or first.weight is None
    second.load_state_dict(first.state_dict())
    x = torch.randn(4, 100)
    assert torch.equal(first(x), second(x))
    if kind == "hadamard":
        assert sum(t.numel() for t in first.state_dict().values()) == 61
    torch.set_rng_state(state)
    assert torch.equal(
        FixedClassifier(100, 60, kind).bias, FixedClassifier(100, 60, kind).bias
    ) is (kind == "orthonormal")  # Hadamard's biases are drawn


@pytest.mark.parametrize("kind", KINDS)
def test_low_precision_keeps_float32_logits(kind: Any) -> None:
    layer = FixedClassifier(256, 100, kind)
    x = torch.randn(8, 256)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x.bfloat16())
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, layer(x.bfloat16().float()))
    # float16 squares of these overflow; the norm does not.
    big = (300 * torch.randn(8, 256)).half()
    torch.testing.assert_close(layer(big), layer(big.float()))
    torch.testing.assert_close(layer(torch.zeros(1, 256))[0], layer.bias)
    assert layer.half()(big).isfinite().all()


def test_exchange() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Sequential(nn.Linear(16, 5, bias=False)))
    assert find_classifier(model) == "2.0"
    fix_classifier(model.double(), "hadamard")
    assert isinstance(model[2][0], FixedClassifier)
    assert model[2][0].bias is None
    assert model[2][0].scale.dtype == torch.float64
    assert find_classifier(model) == "2.0"
    assert isinstance(fix_classifier(nn.Linear(4, 3), "orthonormal"), FixedClassifier)
    for without in (nn.Conv2d(1, 1, 1), model):
        with pytest.raises(UserError, match=r"model\.classifier=hadamard: the model has no linear"):
            fix_classifier(without, "hadamard")


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="64 features tell at most 64 classes apart"):
        FixedClassifier(64, 100)
    with pytest.raises(UserError, match=r"model\.classifier=hadamard: 64 features"):
        fix_classifier(nn.Linear(64, 100), "hadamard")
    with pytest.raises(ValueError, match="kind='random'"):
        FixedClassifier(4, 4, "random")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_compiles_whole(kind: Any) -> None:
    layer = FixedClassifier(20, 7, kind)
    x = torch.randn(4, 20, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    compiled(x).square().sum().backward()
    found, x.grad = x.grad, None
    layer(x).square().sum().backward()
    torch.testing.assert_close(found, x.grad)
