import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from largebatch.nn import GhostBatchNorm, ghost_place, ghost_sizes, step_end

CLASSES = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def random_case(seed):
    generator = torch.Generator().manual_seed(seed)

    def integer(low, high):
        return int(torch.randint(low, high + 1, (), generator=generator))

    dims, ghost_size = integer(2, 5), integer(2, 6)
    shape = (integer(2, 20), integer(1, 5), *(integer(1, 4) for _ in range(dims - 2)))
    x = torch.randn(shape, dtype=torch.float64, generator=generator) * 3 + integer(-5, 5)
    if dims == 4 and integer(0, 1):
        x = x.contiguous(memory_format=torch.channels_last)
    if dims == 5 and integer(0, 1):
        x = x.contiguous(memory_format=torch.channels_last_3d)
    return x, ghost_size


def chunk_and_cat(reference, x, sizes):
    """Ghost batch norm as the reference code does it: one small forward after the other."""
    return torch.cat([reference(ghost) for ghost in x.split(sizes)])


@pytest.mark.parametrize("seed", range(60))
def test_equals_torch_per_group(seed):
    x, ghost_size = random_case(seed)
    channels = x.shape[1]
    sizes = ghost_sizes(x.shape[0], ghost_size, 2 if x[0, 0].numel() < 2 else 1)
    reference = CLASSES[x.dim()](channels).double()
    nn.init.uniform_(reference.weight)
    nn.init.uniform_(reference.bias)
    norm = GhostBatchNorm(channels, ghost_size).double()
    norm.load_state_dict(reference.state_dict())
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    upstream = torch.randn_like(x)
    for _ in range(2):
        y, expected = norm(mine), chunk_and_cat(reference, theirs, sizes)
        torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
        y.backward(upstream)
        expected.backward(upstream)
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(norm.weight.grad, reference.weight.grad, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(norm.bias.grad, reference.bias.grad, rtol=1e-9, atol=1e-9)
    reference.load_state_dict(norm.state_dict(), strict=True)  # counts ghosts as calls, too
    torch.testing.assert_close(norm.running_var, reference.running_var)
    assert int(norm.num_batches_tracked) == 2 * len(sizes)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("momentum", [0.3, None])
def test_sequential_running_statistics_equal_small_forwards(seed, momentum):
    x, ghost_size = random_case(seed)
    sizes = ghost_sizes(x.shape[0], ghost_size, 2 if x[0, 0].numel() < 2 else 1)
    reference = CLASSES[x.dim()](x.shape[1], momentum=momentum).double()
    norm = GhostBatchNorm(x.shape[1], ghost_size, momentum=momentum).double()
    for _ in range(3):
        norm(x)
        chunk_and_cat(reference, x, sizes)
        x = x * 1.5 + 1
    torch.testing.assert_close(norm.state_dict(), reference.state_dict(), rtol=1e-12, atol=1e-12)


def test_golden_running_mean():
    """Ghost means 1, 2, 3, 4 with momentum 0.1 from 0: .9049 (one averaged update gives .25)."""
    x = torch.tensor([0.0, 2, 1, 3, 2, 4, 3, 5], dtype=torch.float64).unsqueeze(1)
    for running, expected in (("sequential", 0.9049), ("averaged", 0.25), ("last", 2.5)):
        norm = GhostBatchNorm(1, 2, running=running).double()
        norm(x)
        assert norm.running_mean.item() == pytest.approx(expected, abs=1e-12), running


@pytest.mark.parametrize("running", ["averaged", "last"])
def test_averaged_and_last_take_the_mean_over_ghosts(running):
    x = torch.randn(10, 3, 4, dtype=torch.float64)
    norm = GhostBatchNorm(3, 4, momentum=0.2, running=running).double()
    nn.init.constant_(norm.running_var, float("nan") if running == "last" else 1.0)
    norm(x)
    ghosts = x.split(4)
    mean = sum(g.mean((0, 2)) for g in ghosts) / 3
    variance = sum(g.var((0, 2)) for g in ghosts) / 3
    if running == "averaged":
        mean, variance = 0.2 * mean, 0.8 + 0.2 * variance
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, variance)


@pytest.mark.parametrize("track", [True, False])
def test_evaluation_knows_no_ghosts_and_changes_nothing(track):
    norm = GhostBatchNorm(4, 3, track_running_stats=track).double()
    reference = nn.BatchNorm2d(4, track_running_stats=track).double()
    if track:
        norm(torch.randn(9, 4, 5, 5, dtype=torch.float64) * 2 + 1)
    reference.load_state_dict(norm.state_dict())
    before = copy.deepcopy(norm.state_dict())
    x = torch.randn(7, 4, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(norm.eval()(x), reference.eval()(x))
    assert all(torch.equal(before[key], value) for key, value in norm.state_dict().items())


def test_relu_and_residual():
    x, shortcut = torch.randn(2, 8, 3, 4, 4, dtype=torch.float64)
    norm = GhostBatchNorm(3, 4, activation="relu").double()
    plain = GhostBatchNorm(3, 4).double()
    torch.testing.assert_close(norm(x, shortcut), torch.relu(plain(x) + shortcut))
    assert (norm(x) >= 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("ghost_size", [8, 32])
def test_low_precision_has_float32_statistics(dtype, ghost_size):
    x = torch.randn(32, 4, 6, 6, dtype=torch.float64).mul(50).add(300).to(dtype)
    norm, exact = GhostBatchNorm(4, ghost_size), GhostBatchNorm(4, ghost_size).double()
    y = norm(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), exact(x.double()), rtol=1e-2, atol=1e-2)
    assert norm.running_var.dtype == torch.float32
    torch.testing.assert_close(norm.running_var.double(), exact.running_var, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert norm(x.float()).dtype == torch.float32


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_no_cancellation_far_from_zero(memory_format):
    x = (torch.randn(64, 4, 9, 9) + 1e4).contiguous(memory_format=memory_format)
    norm, exact = GhostBatchNorm(4, 16), GhostBatchNorm(4, 16).double()
    # One unit in the last place of x is 1e-3 here; E[x^2] - E[x]^2 would be wrong by 1e1.
    torch.testing.assert_close(norm(x).double(), exact(x.double()), rtol=0, atol=2e-2)
    torch.testing.assert_close(norm.running_var.double(), exact.running_var, rtol=1e-3, atol=0)


@pytest.mark.parametrize("samples", [8, 10])
def test_keeps_channels_last(samples):
    x = torch.randn(samples, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    assert GhostBatchNorm(3, 4)(x).is_contiguous(memory_format=torch.channels_last)


def test_second_derivatives():
    norm = GhostBatchNorm(2, 3).double()
    x = torch.randn(6, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(norm, x)


def test_refuses_too_few_values_and_wrong_shapes():
    norm = GhostBatchNorm(4, 2)
    for x, message in (
        (torch.zeros(1, 4), "more than 1 value per channel"),
        (torch.zeros(1, 4, 1, 1), "more than 1 value per channel"),
        (torch.zeros(4), "2 to 5 dimensions"),
        (torch.zeros(4, 3), "expected 4 channels"),
    ):
        with pytest.raises(ValueError, match=message):
            norm(x)
    with pytest.raises(ValueError, match="more than 1 value"):
        GhostBatchNorm(4, 1)(torch.zeros(4, 4))
    assert norm(torch.zeros(1, 4, 2)).shape == (1, 4, 2)
    for arguments in ({"ghost_size": 0}, {"running": "mean"}, {"activation": "gelu"}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            GhostBatchNorm(**{"num_features": 4, "ghost_size": 2, **arguments})


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("placed", [True, False])
def test_recomputation_counts_once(use_reentrant, placed):
    x = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    plain, checkpointed = (GhostBatchNorm(3, 2).double() for _ in range(2))
    for norm, forward in (
        (plain, lambda x: plain(x)),
        (checkpointed, lambda x: checkpoint(checkpointed, x, use_reentrant=use_reentrant)),
    ):
        if placed:
            with ghost_place(0, 4):
                forward(x).square().sum().backward()
            step_end(norm, 4)
        else:
            forward(x).square().sum().backward()
    torch.testing.assert_close(plain.state_dict(), checkpointed.state_dict(), rtol=0, atol=0)
    assert int(checkpointed.num_batches_tracked) == 4


def test_compiles_whole():
    norm = GhostBatchNorm(3, 4, activation="relu").double()
    expected = copy.deepcopy(norm)
    compiled = torch.compile(norm, fullgraph=True, backend="aot_eager")
    for samples in (8, 10):
        x = torch.randn(samples, 3, 4, 4, dtype=torch.float64)
        torch.testing.assert_close(compiled(x), expected(x))
        with ghost_place(0, 3):
            torch.testing.assert_close(compiled(x), expected(x))
        step_end(norm, 3)
        step_end(expected, 3)
    torch.testing.assert_close(norm.state_dict(), expected.state_dict())
