"""A real DeepSpeed ZeRO run with our LAMB and LARS equals DDP with them."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from largebatch._errors import UserError
from largebatch.optim import LAMB, LARS, SGD, param_groups, shard_for_deepspeed
from largebatch.processes.ending import end_group

STEPS, WORLD = 8, 2
MAKE = {
    "lamb": lambda groups: LAMB(groups, 0.02),
    "lars": lambda groups: LARS(groups, 4.0, preset="mlperf"),
}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 5, 3), nn.GroupNorm(1, 5), nn.ReLU(), nn.Flatten(), nn.Linear(80, 7)
    )


def loss_of(model: nn.Module, step: int, rank: int) -> Tensor:
    generator = torch.Generator().manual_seed(10 * step + rank)
    inputs = torch.randn(8, 2, 6, 6, generator=generator)
    return (model(inputs) - inputs.mean()).square().mean()


def one_rank(rank: int, stage: int, folder: Path) -> None:
    os.environ.update(DS_ACCELERATOR="cpu", RANK=str(rank), LOCAL_RANK=str(rank))
    os.environ.update(WORLD_SIZE=str(WORLD), MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), WORLD)
    dist.init_process_group("gloo", rank=rank, world_size=WORLD, store=store)
    import deepspeed

    # Its shared-memory collectives are compiled at first use, for minutes; gloo's do.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    config = {
        "train_micro_batch_size_per_gpu": 8,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
    }
    for name, make in MAKE.items():
        model = net()
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=make(param_groups(model, 0.01)), config=config
        )
        shard_for_deepspeed(engine)
        for step in range(STEPS):
            engine.backward(loss_of(engine, step, rank))
            engine.step()
        plain = net()
        optimizer = make(param_groups(plain, 0.01))
        parallel = nn.parallel.DistributedDataParallel(plain)
        before = net()
        for step in range(STEPS):
            optimizer.zero_grad()
            loss_of(parallel, step, rank).backward()
            optimizer.step()
        for (key, found), expected, start in zip(
            model.named_parameters(), plain.parameters(), before.parameters(), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, msg=f"{name} {key}")
            assert not torch.allclose(expected, start, rtol=1e-2)
    held = [p._hp_mapping is not None for p in model.parameters()]
    torch.save(held, folder / f"held{rank}")
    end_group()


@pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"
)
@pytest.mark.timeout(600)
@pytest.mark.parametrize("stage", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_zero_equals_ddp(stage: int, tmp_path: Path) -> None:
    mp.start_processes(one_rank, (stage, tmp_path), nprocs=WORLD, start_method="forkserver")
    held = [torch.load(tmp_path / f"held{rank}", weights_only=True) for rank in range(WORLD)]
    assert all(map(any, zip(*held, strict=True)))
    assert any(a and b for a, b in zip(*held, strict=True))  # a tensor lies on both ranks


def test_wrong_engines_are_refused() -> None:
    params = [nn.Parameter(torch.zeros(2))]
    for optimizer, message in (
        (SimpleNamespace(optimizer=SGD(params)), "is SGD; give"),
        (SimpleNamespace(optimizer=LARS(params, 1.0)), "stage 1 or 2"),
        (
            SimpleNamespace(
                optimizer=LAMB(params, 1.0, preset="nvlamb"), single_partition_of_fp32_groups=[]
            ),
            "gradient_clipping in DeepSpeed's config",
        ),
    ):
        with pytest.raises(UserError, match=message):
            shard_for_deepspeed(SimpleNamespace(optimizer=optimizer))
