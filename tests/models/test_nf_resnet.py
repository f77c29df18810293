"""NF-ResNet-50: bookkeeping of variances, size, and the network of timm with its weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from largebatch._errors import UserError
from largebatch.models import ModelConfig, build_model, image_offers
from largebatch.models.nf_resnet import GAIN, NFResNet, NormFreeBlock
from largebatch.nn import NormConfig, ScaledWSConv2d


def test_expected_deviations_are_the_published_sequence() -> None:
    with torch.device("meta"):
        betas = [b.beta for b in NFResNet((1, 2, 6, 3)).modules() if isinstance(b, NormFreeBlock)]
    published = [1, 0.980581, 0.980581, 0.962250, 0.980581, 0.962250, 0.944911, 0.928477, 0.912871,
                 0.898027, 0.980581, 0.962250]  # fmt: skip
    assert [1 / beta for beta in betas] == pytest.approx(published, abs=1e-6)


def test_blocks_start_as_their_shortcuts() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(NormFreeBlock(16, 16, 1, 1.0)(x), x)
    block = NormFreeBlock(16, 32, 2, 1.3)
    assert block.shortcut is not None
    torch.testing.assert_close(block(x), block.shortcut(torch.relu(x) * GAIN / 1.3))
    open_branch = NormFreeBlock(16, 16, 1, 1.0, gain=1.0)
    assert not torch.allclose(open_branch(x), x)


def test_gradients_of_a_block() -> None:
    torch.manual_seed(0)
    block = NormFreeBlock(4, 8, 2, 1.2, gain=0.7).double()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    names, tensors = zip(*block.named_parameters(), strict=True)
    assert torch.autograd.gradcheck(
        lambda x, *values: torch.func.functional_call(block, dict(zip(names, values, strict=True)),
                                                      (x,)), (x, *tensors)
    )  # fmt: skip


def test_variance_grows_as_kept_in_the_books() -> None:
    """The mean variance of the channels after every block, on normally distributed input."""
    torch.manual_seed(0)
    model = NFResNet((3, 4, 2, 1), residual_gamma=1.0)
    x = torch.randn(16, 64, 24, 24)
    for stage in model.stages:
        for number, block in enumerate(stage, 1):
            with torch.no_grad():
                x = block(x)
            expected = 1 + number * 0.2**2
            assert x.var((0, 2, 3)).mean().item() == pytest.approx(expected, rel=0.08)
            assert x.mean((0, 2, 3)).square().mean().item() < 0.03
    # A branch alone adds alpha^2 of a unit variance.
    block = NormFreeBlock(256, 256, 1, math.sqrt(1.04), gain=1.0)
    x = math.sqrt(1.04) * torch.randn(8, 256, 12, 12)
    added = (block(x) - x).detach()
    assert added.var((0, 2, 3)).mean().item() == pytest.approx(0.04, rel=0.1)


def transplant(ours: NFResNet, theirs: nn.Module) -> None:
    """Give timm's network our weights, and strides in place of the poolings of its shortcuts."""

    def give(source: nn.Module, target: nn.Module) -> None:
        assert isinstance(source, ScaledWSConv2d)
        target.weight.copy_(source.weight)
        target.gain.copy_(source.gain.view_as(target.gain))
        target.bias.zero_() if source.bias is None else target.bias.copy_(source.bias)

    with torch.no_grad():
        give(ours.stem, theirs.stem.conv)
        for mine, its in zip(ours.stages, theirs.stages, strict=True):
            for block, other in zip(mine, its, strict=True):
                for name in ("conv1", "conv2", "conv3"):
                    give(getattr(block, name), getattr(other, name))
                other.skipinit_gain.copy_(block.skip_init.gain)
                assert (other.downsample is None) == (block.shortcut is None)
                assert 1 / other.beta == pytest.approx(block.beta, rel=1e-12)
                if block.shortcut is not None:
                    give(block.shortcut, other.downsample.conv)
                    stride = block.shortcut.stride[0]
                    other.downsample.pool = nn.AvgPool2d(1, stride)
        theirs.head.fc.load_state_dict(ours.fc.state_dict())


@pytest.mark.slow
def test_equals_timm_with_its_constants() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    ours = NFResNet((3, 4, 6, 3), num_classes=7, residual_gamma=1.0)
    theirs = timm.create_model(
        "nf_resnet50", num_classes=7, skipinit=True, gamma_in_act=True, std_conv_eps=1e-30
    )
    for parameter in ours.parameters():
        if parameter.ndim <= 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    transplant(ours, theirs)

    def count(model: nn.Module) -> int:
        return sum(p.numel() for p in model.parameters())

    assert count(ours) == count(theirs) - 64  # our stem, as the published one, has no bias
    x = torch.randn(2, 3, 33, 32, dtype=torch.float64)
    expected: Tensor = theirs.double()(x)
    torch.testing.assert_close(ours.double()(x), expected, rtol=1e-9, atol=1e-9)


def test_from_the_config() -> None:
    with torch.device("meta"):
        config = ModelConfig(name="nf_resnet50", residual_gamma=1.0, drop=0.2, drop_path=0.1)
        model = build_model(config, NormConfig(), image_offers(10, (3, 64, 64)))
        assert sum(m.p > 0 for m in model.modules() if hasattr(m, "p")) == 17
        with pytest.raises(UserError, match="nf_resnet50 takes images of at least 32x32"):
            build_model(config, NormConfig(), image_offers(10, (3, 16, 16)))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
