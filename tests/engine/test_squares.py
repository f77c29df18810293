"""Squared norms of gradients against the gradients themselves, on one rank and on two."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from largebatch._errors import UserError
from largebatch.engine import DistributedConfig, Engine, build_engine
from largebatch.processes import World
from largebatch.processes.ending import end_group


def make() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 3)).double()
    model[1].unused = nn.Linear(2, 2).double()
    return model


def samples(rank: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(8, 6, dtype=torch.float64, generator=generator)


def groups(model: nn.Module) -> list[dict[str, Any]]:
    weights = [p for p in model.parameters() if p.ndim > 1]
    return [{"params": weights}, {"params": [p for p in model.parameters() if p.ndim == 1]}]


def engine_of(world: World, scale: float | None = None) -> Engine:
    model = make()
    engine = build_engine(model, world, DistributedConfig(bucket_mb=0.001))
    scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
    engine.adopt(torch.optim.SGD(groups(model), 0.1), scaler)
    return engine


def step(engine: Engine, x: torch.Tensor, overlap: bool = True) -> list[torch.Tensor]:
    """Take the passes of a step; return the gradients as they are before the ranks add up."""
    engine.begin()
    for number, part in enumerate(x.split(4), 1):
        if number == len(x) // 4:
            engine.last(overlap)
        engine.backward(engine.model(part).square().sum(), 1 / 16)
        if engine.squares is not None:
            engine.squares.passed(torch.tensor(4.0), 16, last=number == len(x) // 4)
    own = [p.grad.clone() if p.grad is not None else None for p in engine.model.parameters()]
    engine.finish()
    return own


def squared(model: nn.Module, grads: list[torch.Tensor]) -> list[float]:
    """Return the squared norm of each tensor's gradient, in the optimizer's order."""
    of = {id(p): g for p, g in zip(model.parameters(), grads, strict=True)}
    found = [of[id(p)] for group in groups(model) for p in group["params"]]
    return [0.0 if g is None else float(g.square().sum()) for g in found]


def test_alone_both_are_those_of_the_gradients() -> None:
    engine = engine_of(World())
    squares = engine.watch_squares()
    assert engine.watch_squares() is squares
    step(engine, samples(0))
    assert squares.summed.tolist() == [0.0] * 6  # nobody wants them
    squares.wanted = True
    own = step(engine, samples(0))
    expected = squared(engine.model, own)
    assert squares.own.tolist() == squares.summed.tolist() == pytest.approx(expected, rel=1e-12)


def test_the_loss_scale_is_taken_out() -> None:
    found = []
    for scale in (None, 1024.0):
        engine = engine_of(World(), scale)
        squares = engine.watch_squares()
        squares.wanted = True
        step(engine, samples(0))
        found.append(squares.summed.tolist())
    assert found[0] == pytest.approx(found[1], rel=1e-12)


def rank_main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    engine = engine_of(World(rank, 2, rank, 2))
    plain = step(engine, samples(rank))
    summed = [p.grad.clone() for p in engine.model.parameters()]
    squares = engine.watch_squares()
    found: dict[str, Any] = {"plain": plain, "summed": summed}
    for overlap in (True, False):
        squares.wanted = True
        own = step(engine, samples(rank), overlap)
        found[f"own {overlap}"] = squares.own.tolist()
        found[f"sum {overlap}"] = squares.summed.tolist()
        grads = [p.grad for p in engine.model.parameters()]
        found[f"same {overlap}"] = all(map(torch.equal, grads, summed))
    found["held back"] = own
    for apart in ("first", "passes"):
        squares.wanted, squares.apart = True, apart
        step(engine, samples(rank))
        found[apart] = squares.parts.tolist(), squares.shares.tolist()
    torch.save(found, folder / f"{rank}.pt")
    end_group()


def test_on_two_ranks_they_are_of_the_parts_and_of_the_sum(tmp_path: Path) -> None:
    mp.start_processes(rank_main, (tmp_path,), nprocs=2, start_method="forkserver")
    model = make()
    alone = engine_of(World())
    total: list[torch.Tensor] = []
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        step(alone, samples(rank))
        own = [p.grad.clone() for p in alone.model.parameters()]
        total = [a + b for a, b in zip(total, own, strict=True)] if total else own
        for overlap in (True, False):
            assert found[f"own {overlap}"] == pytest.approx(squared(model, own), rel=1e-12)
            assert found[f"same {overlap}"], "they changed the gradients"
        assert found["first"][1] == pytest.approx([0.25, 0.0625, 1.0])
        assert found["passes"][1] == pytest.approx([0.5, 0.125, 2.0])
        passes = []
        for part in samples(rank).split(4):
            step(alone, part)
            passes.append(squared(model, [p.grad for p in alone.model.parameters()]))
        assert found["first"][0] == pytest.approx(passes[0], rel=1e-9)
        both = [sum(each) for each in zip(*passes, strict=True)]
        assert found["passes"][0] == pytest.approx(both, rel=1e-9)
        # Told to stay, a rank's gradients are its own until all are over.
        for mine, held in zip(own, found["held back"], strict=True):
            torch.testing.assert_close(held, mine)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        for overlap in (True, False):
            assert found[f"sum {overlap}"] == pytest.approx(squared(model, total), rel=1e-12)


def test_an_engine_without_gradients_of_a_rank_refuses_by_name() -> None:
    with pytest.raises(UserError, match=r"distributed\.engine=fsdp .* take ddp"):
        Engine.watch_squares(SimpleNamespace(name="fsdp"))  # type: ignore[arg-type]
