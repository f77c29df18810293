"""A fused ResNet computes what the model before did, and saves the same state."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from largebatch.nn import convert_batch_norm, fuse
from largebatch.nn.fuse import FusedResidualBlock

models = pytest.importorskip("torchvision.models")


@pytest.mark.parametrize(("block", "kind"), [("BasicBlock", "l1"), ("Bottleneck", "ghost")])
def test_fused_equals_plain(block: str, kind: str) -> None:
    torch.manual_seed(0)
    plain = models.ResNet(getattr(models.resnet, block), [1, 2, 1, 1], num_classes=3).double()
    convert_batch_norm(plain, kind, ghost_size=2)
    fused = fuse(copy.deepcopy(plain))
    assert sum(isinstance(m, FusedResidualBlock) for m in fused.modules()) == 5
    assert not any(isinstance(m, nn.ReLU) for m in fused.modules())
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    for _ in range(2):
        expected, found = plain(x), fused(x)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
        expected.sum().backward()
        found.sum().backward()
    for a, b in zip(plain.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(fused.state_dict(), plain.state_dict(), rtol=1e-8, atol=1e-10)
    assert list(fused.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(fused.eval()(x), plain.eval()(x), rtol=1e-8, atol=1e-8)
    assert fuse(fused) is fused  # nothing left to fold


def test_what_cannot_be_fused_stays() -> None:
    torchs = models.resnet18(num_classes=3)
    before = [type(m) for m in torchs.modules()]
    assert [type(m) for m in fuse(torchs).modules()] == before
    other = convert_batch_norm(models.resnet18(num_classes=3), "ghost", ghost_size=2)
    other.layer1[0].relu = nn.SiLU()
    fuse(other)
    assert not isinstance(other.layer1[0], FusedResidualBlock)
    assert isinstance(other.layer1[1], FusedResidualBlock)


@pytest.mark.slow
def test_a_converted_and_fused_resnet50_is_traced_whole() -> None:
    torch.manual_seed(0)
    net = fuse(convert_batch_norm(models.resnet50(num_classes=3), "l1", ghost_size=2))
    twin = copy.deepcopy(net)
    x = torch.randn(4, 3, 32, 32)
    found = torch.compile(net, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(found, twin(x), rtol=1e-3, atol=1e-3)
    found.sum().backward()
    assert all(p.grad is not None for p in net.parameters())
