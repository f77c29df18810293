"""DeepSpeed's engine on real ranks against ours: losses, clipping, state, conversion both ways."""

from __future__ import annotations

import copy
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from largebatch._errors import UserError
from largebatch.engine import DistributedConfig, Engine, Terms, build_engine
from largebatch.optim import OptimConfig, build_optimizer, clip_gradients
from largebatch.processes import World
from largebatch.processes.ending import end_group

RANKS, STEPS, HALF, CLIP = 2, 8, 4, 0.5
CASES = [
    (stage, name, compute)
    for stage in (0, 1, 2)
    for name, compute in (
        ("sgd", "fp32"),
        ("adamw", "fp32"),
        ("lamb", "fp32"),
        ("lars", "fp32"),
        ("sgd", "bf16"),
        ("adamw", "fp16"),
    )
]
RATES = {"sgd": 0.1, "adamw": 0.01, "lamb": 0.02, "lars": 2.0}
# Of the losses; in 16 bits both sides round, but not alike.
TOLERANCE = {"fp32": 1e-5, "bf16": 5e-2, "fp16": 1e-2}


class Net(nn.Module):
    """Rows that two ranks do not divide; a norm, whose parameters are a group of their own.

    No bias before it: its gradient is rounding noise, which LARS would amplify.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(6, 7, bias=False),
            nn.BatchNorm1d(7),
            nn.ReLU(),
            nn.Linear(7, 5),
            nn.Linear(5, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def make(kind: str, case: tuple[int, str, str], rank: int) -> Engine:
    stage, name, compute = case
    torch.manual_seed(0)
    model = Net()
    optim = OptimConfig(name=name, lr=RATES[name], weight_decay=0.01, clip_norm=CLIP)
    config = DistributedConfig(engine=kind)
    terms = Terms(optimizer=name, clip_norm=CLIP)
    if kind == "deepspeed":
        config.zero_stage = stage
        terms = Terms(optimizer=name, clip_norm=CLIP, compute=compute)
    engine = build_engine(model, World(rank, RANKS, rank, RANKS), config, terms)
    fp16 = kind == "deepspeed" and compute == "fp16"
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if fp16 else None
    engine.adopt(build_optimizer(optim, model), scaler)
    return engine


def train(engine: Engine, rank: int, begin: int, end: int) -> list[float]:
    """Take steps of 24 samples in uneven shares, 16 and 8, in passes of 4; return the losses."""
    losses = []
    for step in range(begin, end):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(24, 6, generator=generator)
        y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
        mine = slice(0, 16) if rank == 0 else slice(16, 24)
        passes = list(zip(x[mine].split(4), y[mine].split(4), strict=True))
        idle = 4 - len(passes)
        engine.begin()
        total = torch.zeros(())
        for number in range(4):
            inputs, targets = passes[max(0, number - idle)]
            logits = engine.module(inputs).float()
            loss = nn.functional.cross_entropy(logits, targets, reduction="sum")
            if number == 3:
                engine.last()
            engine.backward(loss, 1 / 24 if number >= idle else 0.0)
            total += loss.detach() if number >= idle else 0
        engine.finish()
        engine.update(lambda: clip_gradients(engine.optimizer, CLIP))
        dist.all_reduce(total)
        losses.append(float(total) / 24)
    return losses


def flat(state: dict[str, Any]) -> dict[tuple[int, str], Any]:
    return {(n, key): v for n, entry in state["state"].items() for key, v in entry.items()}


def one_case(case: tuple[int, str, str], rank: int) -> dict[str, Any]:
    plain, zero = make("ddp", case, rank), make("deepspeed", case, rank)
    found: dict[str, Any] = {"plain": train(plain, rank, 0, HALF)}
    found["zero"] = train(zero, rank, 0, HALF)
    expected, state = flat(plain.optimizer_state()), flat(zero.optimizer_state())
    found["same keys"] = expected.keys() == state.keys()
    tensors = {key: a.double() for key, a in expected.items() if isinstance(a, Tensor)}
    gap = sum(float((a - state[key].double()).square().sum()) for key, a in tensors.items())
    found["state"] = (gap / sum(float(a.square().sum()) for a in tensors.values())) ** 0.5
    found["types"] = sorted({str(t.dtype) for t in zero.weights().values() if t.ndim})
    to, back = make("deepspeed", case, rank), make("ddp", case, rank)
    for source, target in ((plain, to), (zero, back)):
        target.load_weights(copy.deepcopy(source.weights()))
        target.load_optimizer_state(copy.deepcopy(source.optimizer_state()))
    found["plain"] += train(plain, rank, HALF, STEPS)
    found["zero"] += train(zero, rank, HALF, STEPS)
    found["to"], found["back"] = train(to, rank, HALF, STEPS), train(back, rank, HALF, STEPS)
    return found


def rank_main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS)
    found = {str(case): one_case(case, rank) for case in CASES}
    if rank == 0:
        torch.save(found, folder / "found")
    end_group()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"
)
def test_deepspeed_equals_ddp(tmp_path: Path) -> None:
    mp.start_processes(rank_main, (tmp_path,), nprocs=RANKS, start_method="forkserver")
    every = torch.load(tmp_path / "found", weights_only=True)
    assert len(every) == len(CASES)
    for case in CASES:
        found, tolerance = every[str(case)], TOLERANCE[case[2]]
        assert found["zero"] == pytest.approx(found["plain"], rel=tolerance), case
        assert found["to"] == pytest.approx(found["plain"][HALF:], rel=tolerance), case
        assert found["back"] == pytest.approx(found["plain"][HALF:], rel=tolerance), case
        assert found["same keys"]
        assert case[2] != "fp32" or found["state"] < 10 * tolerance, case
        assert found["types"] == ["torch.float32"], case
        assert found["plain"][-1] < found["plain"][0], case


def test_an_absent_deepspeed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(UserError, match=r"DeepSpeed is not installed.*largebatch\[deepspeed\]"):
        build_engine(nn.Linear(2, 2), World(), DistributedConfig(engine="deepspeed"))
