"""A ghost on several ranks equals one process with the whole of it, by every norm."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from largebatch._errors import UserError
from largebatch.nn import (
    GhostBatchNorm,
    L1BatchNorm,
    LInfBatchNorm,
    NormConfig,
    SyncBatchNorm,
    TopKBatchNorm,
    check_norm,
    convert_batch_norm,
    ghost_place,
    merge_running_stats,
    step_end,
)
from largebatch.processes.ending import end_group

RANKS, SAMPLES, CHANNELS = 3, 10, 5
SHARES = ((4, 3, 3), (7, 3, 0), (0, 1, 9), (9, 0, 1))
ALL: dict[str, Any] = {"process_group": "all"}
# Name: the norm over ranks, the same on one process, its options.
NORMS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "sync": (SyncBatchNorm, GhostBatchNorm, {}),
    "sync without running statistics": (
        SyncBatchNorm,
        GhostBatchNorm,
        {"track_running_stats": False},
    ),
    "l1": (L1BatchNorm, L1BatchNorm, {}),
    "linf": (LInfBatchNorm, LInfBatchNorm, {}),
    "topk": (TopKBatchNorm, TopKBatchNorm, {"k": 4}),
}


def batches() -> list[Tensor]:
    """Two batches, then their upstream gradients; some values tie for the largest deviation."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, SAMPLES, CHANNELS, 2, 3, dtype=torch.float64, generator=generator)
    x[:2] = x[:2] * 3 + 5
    x[0, 1, 0, 0, 0] = x[0, 8, 0, 0, 0] = 90.0
    return list(x)


def take(norm: nn.Module, x: Tensor, upstream: Tensor) -> list[Tensor]:
    """Return the output and the gradients of x and the residual."""
    x, shortcut = x.clone().requires_grad_(), (x / 2).requires_grad_()
    y = norm(x, shortcut)
    y.backward(upstream)
    assert x.grad is not None and shortcut.grad is not None
    return [y.detach(), x.grad, shortcut.grad]


def check_ranks(rank: int, name: str, shares: tuple[int, ...], group: Any) -> None:
    over, alone, options = NORMS[name]
    where = {} if over is SyncBatchNorm else ALL
    torch.manual_seed(1)
    norm = over(CHANNELS, activation="relu", **where, **options).double()
    nn.init.uniform_(norm.weight)
    whole = alone(CHANNELS, SAMPLES, activation="relu", **options).double()
    whole.load_state_dict(norm.state_dict())
    first, second, *upstreams = batches()
    mine = slice(sum(shares[:rank]), sum(shares[: rank + 1]))
    for x, upstream in zip((first, second), upstreams, strict=True):
        expected = take(whole, x, upstream)
        found = take(norm, x[mine], upstream[mine])
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other[mine], rtol=1e-9, atol=1e-10)
    for parameter, other in zip(norm.parameters(), whole.parameters(), strict=True):
        dist.all_reduce(parameter.grad, group=group)
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(norm.state_dict(), whole.state_dict(), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(norm.eval()(first), whole.eval()(first))


def check_groups_and_places(rank: int, pair: Any) -> None:
    """Ghosts of ranks 0 and 1 together and of rank 2 alone: running statistics as on one."""
    x, *_ = batches()
    norm = SyncBatchNorm(CHANNELS, process_group=pair).double()
    whole = GhostBatchNorm(CHANNELS, 6).double()
    parts = (slice(0, 2), slice(2, 6), slice(6, 10))
    for _ in range(2):
        with ghost_place(0 if rank < 2 else 1, 2):
            y = norm(x[parts[rank]])
        step_end(norm, 2)
        torch.testing.assert_close(y, whole(x)[parts[rank]])
        x = x * 1.5 + 1
    merge_running_stats(norm)
    torch.testing.assert_close(norm.state_dict(), whole.state_dict(), rtol=1e-9, atol=1e-10)
    assert copy.deepcopy(norm).ranks == norm.ranks


def check_half_precision_and_offsets(rank: int) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(12, CHANNELS, 8, 8, generator=generator) + 100
    whole = GhostBatchNorm(CHANNELS, 12).double()
    mine = slice(4 * rank, 4 * rank + 4)
    for dtype, tolerance in ((torch.float32, 1e-3), (torch.bfloat16, 3e-2)):
        x = values.to(dtype)
        norm = SyncBatchNorm(CHANNELS)
        y = norm(x[mine])
        assert y.dtype == dtype
        expected = whole(x.double())[mine]
        # The first forward shifts by a running mean of 0, a hundred deviations away.
        torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=30 * tolerance)
        norm.running_mean.fill_(100.0)
        torch.testing.assert_close(norm(x[mine]).double(), expected, rtol=tolerance, atol=tolerance)
        far = SyncBatchNorm(CHANNELS, track_running_stats=False)
        torch.testing.assert_close(
            far((values + 1e4)[mine]).double(),
            whole((values + 1e4).double())[mine],
            rtol=1e-2,
            atol=1e-2,
        )


def check_refusals(rank: int) -> None:
    norm = SyncBatchNorm(CHANNELS)
    x = torch.randn(3, CHANNELS, requires_grad=True)
    # A NaN on one rank is every rank's.
    y = norm(torch.full_like(x, float("nan")) if rank == 1 else x)
    assert y.isnan().all()
    y = norm(x)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


def rank_main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=RANKS
    )
    pair, single = dist.new_group([0, 1]), dist.new_group([2])
    for name in NORMS:
        for shares in SHARES:
            check_ranks(rank, name, shares, None)
    check_groups_and_places(rank, pair if rank < 2 else single)
    check_half_precision_and_offsets(rank)
    check_refusals(rank)
    end_group()


def test_three_ranks_are_one_process(tmp_path: Path) -> None:
    mp.start_processes(rank_main, (tmp_path,), nprocs=RANKS, start_method="forkserver")


def test_alone_it_is_batch_norm() -> None:
    x = torch.randn(6, 3, 4, dtype=torch.float64)
    norm, reference = SyncBatchNorm(3).double(), nn.BatchNorm1d(3).double()
    torch.testing.assert_close(norm(x), reference(x))
    torch.testing.assert_close(norm.state_dict(), reference.state_dict())
    with ghost_place(0, 2):
        torch.testing.assert_close(norm(x), reference(x))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm(x[:1, :, :1])
    reference = nn.SyncBatchNorm(3)
    assert list(norm.state_dict()) == list(reference.state_dict())


def test_conversion() -> None:
    net = nn.Sequential(nn.BatchNorm2d(4, eps=1e-3), nn.SyncBatchNorm(4))
    weight = net[0].weight
    convert_batch_norm(net, "sync")
    assert type(net[0]) is type(net[1]) is SyncBatchNorm
    assert net[0].weight is weight
    assert (net[0].eps, net[0].ranks) == (1e-3, None)
    convert_batch_norm(net, "batch")
    assert type(net[0]) is nn.BatchNorm2d
    with pytest.raises(UserError, match="over ranks a forward is one ghost"):
        convert_batch_norm(net, "sync", ghost_size=4)
    with pytest.raises(ValueError, match="over ranks a forward is one ghost"):
        L1BatchNorm(4, 8, process_group="all")
    for config, message in (
        (NormConfig(kind="ghost", ghost_size=8, sync_ranks=2), "norm.sync_ranks=2: no effect"),
        (NormConfig(kind="sync", sync_ranks=0), "norm.sync_ranks=0: must be at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            check_norm(config)
