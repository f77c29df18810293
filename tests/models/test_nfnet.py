"""NFNet: the signal at initialisation, and the parts of its blocks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from largebatch.models.nfnet import NFBlock, SqueezeExcitation, active
from largebatch.models.nfnet import NFNet as Net
from largebatch.nn import ScaledWSConv2d


def test_the_activation_keeps_the_variance() -> None:
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    assert active(x).var().item() == pytest.approx(1.0, abs=0.02)


def test_expected_deviations_of_f0() -> None:
    """1 / beta of the twelve blocks, from the published code (reference: 1, .980581, ...)."""
    with torch.device("meta"):
        net = Net(0, 10, 3, 0.0, 0.0, 0.0)
    found = [1 / block.beta for block in net.modules() if isinstance(block, NFBlock)]
    expected = [1, 0.980581, 0.980581, 0.962250, 0.980581, 0.962250, 0.944911, 0.928477, 0.912871,
                0.898027, 0.980581, 0.962250]  # fmt: skip
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_closed_block_is_its_shortcut() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 256, 6, 6)
    block = NFBlock(256, 256, 1, 1.0, gain=0.0, drop_path=0.0)
    torch.testing.assert_close(block(x), x)
    opened = NFBlock(256, 512, 2, 1.0, gain=1.0, drop_path=0.0)
    assert opened(x).shape == (2, 512, 3, 3)
    assert opened.conv2.groups == 2 and opened.conv2.weight.shape[1] == 128


def test_excitation_keeps_the_scale_at_an_even_gate() -> None:
    excitation = SqueezeExcitation(8)
    for parameter in excitation.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(2, 8, 3, 3)
    torch.testing.assert_close(excitation(x), x)


def test_every_convolution_is_standardised() -> None:
    with torch.device("meta"):
        net = Net(1, 10, 3, 0.0, 0.0, 0.0)
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) > 90
    assert all(isinstance(m, ScaledWSConv2d) and m.bias is not None for m in convolutions)
