"""Exact layer-wise ratios where ranks hold parts of tensors: real ranks over gloo."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor

from largebatch._errors import UserError
from largebatch.optim import LAMB, LARS, Fragment
from largebatch.processes.ending import end_group

STEPS = 5
MAKE = {
    "lars": lambda params: LARS(params, 2.0, weight_decay=0.01, preset="mlperf"),
    "lamb": lambda params: LAMB(params, 0.02, weight_decay=0.1, preset="nvlamb"),
}


def net() -> nn.Module:
    """Rows that no number of ranks divides, and a tensor of fewer rows than ranks."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 7), nn.LayerNorm(7), nn.Linear(7, 5), nn.Linear(5, 2))


def grad_of(step: int, index: int, shape: Any) -> Tensor:
    generator = torch.Generator().manual_seed(100 * step + index)
    return torch.randn(shape, generator=generator)


def unsharded(name: str) -> list[Tensor]:
    model = net()
    optimizer = MAKE[name](model.parameters())
    for step in range(STEPS):
        for index, param in enumerate(model.parameters()):
            param.grad = grad_of(step, index, param.shape)
        optimizer.step()
    return [param.detach() for param in model.parameters()]


class Messages:
    """Counts the all-reduces of a step and their bytes."""

    def __init__(self) -> None:
        self.bytes: list[int] = []
        self._real = dist.all_reduce

    def __enter__(self) -> Messages:
        def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.bytes.append(tensor.numel() * tensor.element_size())
            return self._real(tensor, *args, **kwargs)

        dist.all_reduce = counted
        return self

    def __exit__(self, *_: object) -> None:
        dist.all_reduce = self._real


def begin(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", rank=rank, world_size=world, store=store)


def fsdp_rank(rank: int, world: int, replicas: int, folder: Path) -> None:
    begin(rank, world, folder)
    for name in MAKE:
        fsdp_run(rank, world, name, replicas, folder)
    dist.barrier()
    end_group()


def fsdp_run(rank: int, world: int, name: str, replicas: int, folder: Path) -> None:
    shape, names = ((world,), ("shard",))
    if replicas > 1:
        shape, names = (replicas, world // replicas), ("replicate", "shard")
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    model = fully_shard(net(), mesh=mesh)
    params = list(model.parameters())
    optimizer = MAKE[name](params)
    empty = any(param.to_local().numel() == 0 for param in params)
    sizes: list[list[int]] = []
    for step in range(STEPS):
        for index, param in enumerate(params):
            grad = grad_of(step, index, param.shape)
            param.grad = DTensor.from_local(
                _part(grad, param), mesh, param.placements, shape=grad.shape, stride=grad.stride()
            )
        with Messages() as messages:
            optimizer.step()
        sizes.append(messages.bytes)
    full = [param.full_tensor().detach() for param in params]
    state = {
        key: value.full_tensor() if isinstance(value, DTensor) else value
        for key, value in optimizer.state[params[0]].items()
    }
    if rank == 0:
        torch.save((full, sizes, len(params), state), folder / name)
    torch.save(empty, folder / f"empty{rank}")


def _part(grad: Tensor, param: DTensor) -> Tensor:
    """Return this rank's rows of a gradient, as the parameter has them."""
    mesh_dim = next(d for d, p in enumerate(param.placements) if p.is_shard())
    parts = grad.chunk(param.device_mesh.size(mesh_dim))
    rank = param.device_mesh.get_local_rank(mesh_dim)
    return parts[rank] if rank < len(parts) else grad[:0]


@pytest.mark.parametrize(
    ("world", "replicas"), [(3, 1), pytest.param(4, 2, marks=pytest.mark.slow)]
)
def test_fsdp_equals_one_process(world, replicas, tmp_path):
    mp.start_processes(
        fsdp_rank, (world, replicas, tmp_path), nprocs=world, start_method="forkserver"
    )
    for name in MAKE:
        full, sizes, tensors, state = torch.load(tmp_path / name, weights_only=True)
        for found, expected in zip(full, unsharded(name), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        # Two float64 a tensor in one message; LAMB's own clipping takes one number more.
        expected_bytes = [8, 16 * tensors] if name == "lamb" else [16 * tensors]
        assert sizes == [expected_bytes] * STEPS
        moment = "exp_avg" if name == "lamb" else "momentum_buffer"
        assert state[moment].shape == full[0].shape
    if world == 3:
        assert torch.load(tmp_path / "empty2")  # a rank with no row of some tensor


def flat_rank(rank: int, world: int, folder: Path) -> None:
    begin(rank, world, folder)
    for name in MAKE:
        flat_run(rank, world, name, folder)
    dist.barrier()
    end_group()


def flat_run(rank: int, world: int, name: str, folder: Path) -> None:
    shapes = [param.shape for param in net().parameters()]
    flat = torch.cat([param.detach().flatten() for param in net().parameters()])
    size = -(-flat.numel() // world)
    low, high = rank * size, min((rank + 1) * size, flat.numel())
    part = nn.Parameter(flat[low:high].clone())
    fragments, offset = [], 0
    for index, shape in enumerate(shapes):
        end = offset + shape.numel()
        begin_here, end_here = max(offset, low), min(end, high)
        if begin_here < end_here:
            fragments.append(Fragment(begin_here - low, end_here - begin_here, index, len(shape)))
        offset = end
    optimizer = MAKE[name]([part])
    optimizer.shard(part, fragments, len(shapes))
    for step in range(STEPS):
        grads = [grad_of(step, i, shape).flatten() for i, shape in enumerate(shapes)]
        part.grad = torch.cat(grads)[low:high].clone()
        optimizer.step()
    torch.save((part.detach(), [f.tensor for f in fragments]), folder / f"{name}{rank}")


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_flat_partitions_equal_one_process(world, tmp_path):
    mp.start_processes(flat_rank, (world, tmp_path), nprocs=world, start_method="forkserver")
    for name in MAKE:
        parts = [torch.load(tmp_path / f"{name}{rank}", weights_only=True) for rank in range(world)]
        straddling = [set(a[1]) & set(b[1]) for a, b in itertools.pairwise(parts)]
        assert any(straddling), "no tensor lies on two ranks"
        found = torch.cat([part for part, _ in parts])
        expected = torch.cat([param.flatten() for param in unsharded(name)])
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


WHOLE = {
    "lars": (LARS, {"lr": 2.0, "weight_decay": 0.01, "preset": "mlperf"}),
    "lamb": (LAMB, {"lr": 0.02, "weight_decay": 0.1}),  # whose own clipping would see a share
}


def whole_rank(rank: int, world: int, folder: Path) -> None:
    begin(rank, world, folder)
    for name, (kind, options) in WHOLE.items():
        model, plain = net(), net()
        shared = ZeroRedundancyOptimizer(model.parameters(), kind, **options)
        alone = kind(plain.parameters(), **options)
        for step in range(STEPS):
            for each in (model, plain):
                for index, param in enumerate(each.parameters()):
                    param.grad = grad_of(step, index, param.shape)
            shared.step()
            alone.step()
        held = sum("step" in s or "momentum_buffer" in s for s in shared.optim.state.values())
        assert 0 < held < len(list(model.parameters())), name
        for a, b in zip(model.parameters(), plain.parameters(), strict=True):
            assert torch.equal(a, b), name
    dist.barrier()
    end_group()


def test_torchs_zero_redundancy_optimizer_gives_each_rank_whole_tensors(tmp_path):
    mp.start_processes(whole_rank, (2, tmp_path), nprocs=2, start_method="forkserver")


def test_one_rank_with_fragments_steps_as_with_tensors(tmp_path):
    """Fragments of all tensors on one rank: the same numbers without a second process."""
    begin(0, 1, tmp_path)
    try:
        model = net()
        shapes = [param.shape for param in model.parameters()]
        flat = nn.Parameter(torch.cat([p.detach().flatten() for p in model.parameters()]))
        optimizer = MAKE["lamb"]([flat])
        offset, parts = 0, []
        for index, shape in enumerate(shapes):
            parts.append(Fragment(offset, shape.numel(), index, len(shape)))
            offset += shape.numel()
        optimizer.shard(flat, parts, len(parts))
        for step in range(STEPS):
            grads = [grad_of(step, i, shape).flatten() for i, shape in enumerate(shapes)]
            flat.grad = torch.cat(grads)
            optimizer.step()
            optimizer.load_state_dict(optimizer.state_dict())  # does not forget the fragments
        expected = torch.cat([param.flatten() for param in unsharded("lamb")])
        torch.testing.assert_close(flat.detach(), expected, rtol=1e-6, atol=1e-7)
        assert float(optimizer.state[flat]["step"]) == STEPS
        before = flat.detach().clone()
        optimizer.shard(flat, [], len(parts))  # a rank that holds padding alone takes part
        optimizer.step()
        assert torch.equal(before, flat)
        again = copy.deepcopy(flat)
        for bad in (Fragment(0, flat.numel() + 1, 0, 1), Fragment(0, 3, 9, 1)):
            with pytest.raises(UserError, match="Fragment"):
                optimizer.shard(again, [bad], 2)
    finally:
        end_group()
