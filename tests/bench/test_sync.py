"""Every collective of a training step on four ranks, counted by a process group that sees all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.modules.batchnorm import _BatchNorm

from largebatch.bench import sync
from largebatch.bench.messages import BACKEND, messages, register
from largebatch.bench.sync_peers import GatheredBatchNorm
from largebatch.models import ModelConfig, build_model, image_offers
from largebatch.nn import NormConfig, SyncBatchNorm
from largebatch.processes.ending import end_group

pytestmark = pytest.mark.slow
MODEL = "digits_cnn"


def channels() -> list[int]:
    """Return the channels of the model's norms."""
    net = build_model(ModelConfig(name=MODEL), NormConfig(), image_offers(10, (3, 32, 32)), seed=0)
    return [m.num_features for m in net.modules() if isinstance(m, _BatchNorm)]


CHANNELS = channels()


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, Any]]:
    record = sync.run(rounds=1, steps=1, samples=4, model=MODEL)
    return {row["contender"]: row for row in record.rows}


def kilobytes(numbers: int) -> float:
    return round(4 * numbers / 1e3, 1)


def test_ghosts_send_nothing(rows: dict[str, dict[str, Any]]) -> None:
    assert rows["ghost"]["norm messages"] == 0
    assert rows["ghost"]["norm KB"] == 0
    assert rows["ghost"]["messages"] == 1  # the gradients, in one bucket


@pytest.mark.parametrize("name", ["sync, groups of 2", "sync, all 4"])
def test_one_message_a_norm_and_direction(rows: dict[str, dict[str, Any]], name: str) -> None:
    assert rows[name]["norm messages"] == 2 * len(CHANNELS)
    assert rows[name]["norm KB"] == kilobytes(sum((2 * c + 1) + 2 * c for c in CHANNELS))
    assert rows[name]["messages"] == 2 * len(CHANNELS) + 1


def test_torchs_way_gathers_from_every_rank_and_broadcasts(rows: dict[str, dict[str, Any]]) -> None:
    gathered, batch = rows["gathered, DDP"], rows["batch, DDP"]
    assert batch["norm messages"] >= 1  # DDP's broadcast of buffers before every forward
    assert gathered["norm messages"] - batch["norm messages"] == 2 * len(CHANNELS)
    difference = gathered["norm KB"] - batch["norm KB"]
    expected = kilobytes(sum(4 * (2 * c + 1) + 2 * c for c in CHANNELS))
    assert difference == pytest.approx(expected, abs=0.11)
    assert all(row["ms"] > 0 for row in rows.values())


def rank_main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    register()
    dist.init_process_group(
        BACKEND, init_method=f"file://{folder / 'store'}", rank=rank, world_size=2
    )
    torch.manual_seed(rank)
    x = torch.randn(4 + rank, 3, 2, 2)
    ours, theirs = SyncBatchNorm(3), GatheredBatchNorm(3)
    for norm in (ours, theirs):
        norm.inputs = x.clone().requires_grad_()
        norm.outputs = norm(norm.inputs)
        norm.outputs.pow(3).sum().backward()
    for name in ("inputs.grad", "outputs", "weight.grad", "bias.grad", "running_var"):
        first, second = ours, theirs
        for part in name.split("."):
            first, second = getattr(first, part), getattr(second, part)
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)
    # A compiled graph sends the same.
    torch.compiler.reset()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    compiled(x.requires_grad_()).sum().backward()
    messages.clear()
    compiled(x).sum().backward()
    assert [(m.kind, m.size) for m in messages] == [("allreduce", 28), ("allreduce", 24)]
    end_group()


def test_the_peer_computes_the_same_and_a_graph_sends_the_same(tmp_path: Path) -> None:
    mp.start_processes(rank_main, (tmp_path,), nprocs=2, start_method="forkserver")
