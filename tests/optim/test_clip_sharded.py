"""Clipping, SGD's step and SAM on parameters sharded by FSDP2: as on one process."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor

from largebatch.optim import (
    SAM,
    SGD,
    adaptive_grad_clip_,
    clip_grad_norm_,
    clip_gradients,
)
from largebatch.processes.ending import end_group


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(80, 3))
    return nn.Sequential(*layers).double()


def set_grads(model: nn.Module, sharded: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    for param in model.parameters():
        grad = torch.randn(param.shape, generator=generator, dtype=torch.float64)
        param.grad = (
            distribute_tensor(grad, param.device_mesh, param.placements) if sharded else grad
        )


def compare(left: list[torch.Tensor], right: list[torch.Tensor]) -> None:
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a.full_tensor(), b, rtol=1e-12, atol=1e-14)


def sharded_rank(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", rank=rank, world_size=world, store=store)
    sharded, whole = net(), net()
    fully_shard(sharded, mesh=init_device_mesh("cpu", (world,)))
    pair = (sharded, whole)

    def grads() -> list[list[torch.Tensor]]:
        return [[param.grad for param in model.parameters()] for model in pair]

    def again() -> None:
        set_grads(sharded, True)
        set_grads(whole, False)

    again()
    norms = [clip_grad_norm_(model.parameters(), 0.5) for model in pair]
    theirs = net()
    set_grads(theirs, False)
    expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
    torch.testing.assert_close(norms[0], expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(norms[1], expected, rtol=1e-12, atol=0)
    compare(*grads())

    again()
    for model in pair:
        adaptive_grad_clip_(model.parameters(), 0.02)
    compare(*grads())

    for kind in (SGD, torch.optim.SGD):  # one is handed the factor, the other's are scaled
        again()
        factors = []
        for model in pair:
            optimizer = kind(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
            factors.append(clip_gradients(optimizer, 0.5))
            optimizer.step()
        assert factors[0].item() < 0.9
        torch.testing.assert_close(factors[0], factors[1], rtol=1e-12, atol=0)
        compare(*(list(model.parameters()) for model in pair))

    again()
    before = [[p.detach().clone() for p in model.parameters()] for model in pair]
    first, second = (SAM(SGD(model.parameters()), model, 0.3) for model in pair)
    with first.perturbed(), second.perturbed():
        compare(*(list(model.parameters()) for model in pair))
        assert not torch.equal(next(whole.parameters()), before[1][0])
    compare(before[0], [param.detach() for param in whole.parameters()])
    end_group()


def test_fsdp_equals_one_process(tmp_path: Path) -> None:
    mp.start_processes(sharded_rank, (2, tmp_path), nprocs=2, start_method="forkserver")
