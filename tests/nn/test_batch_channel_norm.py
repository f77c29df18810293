"""Batch-channel norm: its two parts, torch's shapes and statistics, conversions and refusals."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from largebatch._errors import UserError
from largebatch.nn import (
    BatchChannelNorm,
    GhostBatchNorm,
    convert_batch_norm,
    fuse,
    ghost_place,
    step_end,
)


def trained(norm: BatchChannelNorm) -> BatchChannelNorm:
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    return norm


@pytest.mark.parametrize("shape", [(10, 6), (10, 6, 4), (10, 6, 4, 2), (10, 6, 2, 2, 2)])
def test_it_is_the_one_norm_after_the_other(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64) * 3 + 2
    norm = trained(BatchChannelNorm(6, 2, ghost_size=4, momentum=0.3).double())
    ghost = GhostBatchNorm(6, 4, momentum=0.3).double()
    ghost.load_state_dict({n: t for n, t in norm.state_dict().items() if "channel" not in n})
    for _ in range(2):  # in training, then in evaluation
        groups = ghost(x).reshape(10, 2, -1)
        var, mean = torch.var_mean(groups, 2, correction=0, keepdim=True)
        scaled = (groups - mean) / (var + norm.eps).sqrt() * norm.channel_weight.view(1, 2, 1)
        expected = (scaled + norm.channel_bias.view(1, 2, 1)).view(shape)
        torch.testing.assert_close(norm(x), expected)
        norm.eval(), ghost.eval()
    torch.testing.assert_close(norm.running_mean, ghost.running_mean)
    torch.testing.assert_close(norm.running_var, ghost.running_var)


def test_scale_of_the_input_and_of_each_sample_is_forgotten() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 6, 5, 5, dtype=torch.float64)
    norm = trained(BatchChannelNorm(6, 3, track_running_stats=False, eps=1e-12).double())
    torch.testing.assert_close(norm(7 * x + 3), norm(x))
    y = norm.eval()(x).view(8, 3, -1)  # each group of each sample
    torch.testing.assert_close(y.mean(2), norm.channel_bias.expand(8, 3))
    torch.testing.assert_close(y.std(2, correction=0), norm.channel_weight.expand(8, 3))


def test_activation_and_residual_come_after_both_parts() -> None:
    x, shortcut = torch.randn(2, 6, 4, 3, 3)
    apart = trained(BatchChannelNorm(4, 2, 3))
    acting = BatchChannelNorm(4, 2, 3, activation="relu")
    acting.load_state_dict(apart.state_dict())
    torch.testing.assert_close(acting(x, shortcut), F.relu(apart(x) + shortcut))
    acting.eval(), apart.eval()
    torch.testing.assert_close(acting(x, shortcut), F.relu(apart(x) + shortcut))
    torch.testing.assert_close(torch.jit.script(acting)(x, shortcut), acting(x, shortcut))


def test_derivatives() -> None:
    torch.manual_seed(0)
    norm = trained(BatchChannelNorm(4, 2, 3, track_running_stats=False).double())
    names = [name for name, _ in norm.named_parameters()]
    x = torch.randn(6, 4, 2, dtype=torch.float64, requires_grad=True)

    def call(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        held = dict(zip(names, values, strict=True))
        result: torch.Tensor = torch.func.functional_call(norm, held, (x,))
        return result

    assert torch.autograd.gradcheck(call, (x, *norm.parameters()))
    assert torch.autograd.gradgradcheck(call, (x, *norm.parameters()))


def test_micro_batches_equal_one_forward() -> None:
    x = torch.randn(14, 4, 2, dtype=torch.float64)
    whole = trained(BatchChannelNorm(4, 2, 4).double())
    parts = copy.deepcopy(whole)
    expected, found = whole(x), []
    for first in (0, 2):
        with ghost_place(first, 4):
            found.append(parts(x[4 * first : 4 * (first + 2)]))
    step_end(parts, 4)
    torch.testing.assert_close(torch.cat(found), expected)
    torch.testing.assert_close(parts.state_dict(), whole.state_dict(), rtol=1e-12, atol=1e-12)


def test_there_and_back() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=1e-3, momentum=0.2)).double()
    net(torch.randn(4, 3, 5, 5).double())
    state, weight = copy.deepcopy(net.state_dict()), net[1].weight
    convert_batch_norm(net, "batch_channel", ghost_size=2, groups=2)
    norm = net[1]
    assert type(norm) is BatchChannelNorm and norm.weight is weight
    assert (norm.eps, norm.momentum, norm.ghost_size, norm.num_groups) == (1e-3, 0.2, 2, 2)
    assert norm.channel_weight.dtype == torch.float64
    convert_batch_norm(net, "batch")
    assert type(net[1]) is nn.BatchNorm2d
    torch.testing.assert_close(dict(net.state_dict()), dict(state))


def test_what_was_trained_is_kept_or_the_conversion_refused() -> None:
    net: Any = nn.Sequential(nn.BatchNorm2d(4))
    convert_batch_norm(net, "batch_channel", 2, groups=2)
    trained(net[0])
    weight = net[0].channel_weight
    convert_batch_norm(net, "batch_channel", 8, groups=2)
    assert net[0].ghost_size == 8 and net[0].channel_weight is weight
    for kind, groups in (("ghost", None), ("batch_channel", 4)):
        with pytest.raises(UserError, match="trained and would be lost"):
            convert_batch_norm(net, kind, 2, groups=groups)


def test_refusals() -> None:
    with pytest.raises(UserError, match="ghost_size is not set"):
        convert_batch_norm(nn.BatchNorm2d(4), "batch_channel", groups=2)
    with pytest.raises(UserError, match=r"norm.groups=3: does not divide the 4 channels.*1, 2, 4"):
        BatchChannelNorm(4, 3)
    zero = nn.BatchNorm2d(4)
    nn.init.zeros_(zero.weight)
    with pytest.raises(UserError, match="residual_gamma"):
        convert_batch_norm(zero, "batch_channel", 2, groups=2)


def test_a_fused_block_is_the_same_function() -> None:
    from torchvision.models.resnet import BasicBlock

    torch.manual_seed(0)
    block = convert_batch_norm(BasicBlock(4, 4), "batch_channel", 3, groups=2)
    for module in block.modules():
        if isinstance(module, BatchChannelNorm):
            trained(module)
    x = torch.randn(6, 4, 5, 5)
    expected = block(x)
    torch.testing.assert_close(fuse(nn.Sequential(block))(x), expected)
