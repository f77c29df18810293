"""FSDP2 on real ranks against the gradient that one process computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from largebatch.engine import DistributedConfig, build_engine
from largebatch.optim import SGD, clip_gradients
from largebatch.processes import World
from largebatch.processes.ending import end_group

RANKS, MICRO = 4, 2
SHARES = {"even": (3, 3, 3, 3), "uneven": (7, 3, 1, 1)}


class Net(nn.Module):
    """Blocks in a Sequential, a tensor of fewer rows than ranks, and a layer that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            nn.Conv2d(3, 7, 3), nn.Sequential(nn.ReLU(), nn.Conv2d(7, 2, 1)), nn.Flatten()
        )
        self.head = nn.Linear(72, 5)
        self.unused = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x))


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().double().to(memory_format=torch.channels_last)


def samples() -> Tensor:
    return torch.randn(12, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().sum() / 12


def rank_main(rank: int, folder: Path, shard_ranks: int | None) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS)
    config = DistributedConfig(engine="fsdp", shard_ranks=shard_ranks)
    engine = build_engine(net(), World(rank, RANKS, rank, RANKS), config)
    engine.adopt(SGD(engine.model.parameters(), lr=0.1, momentum=0.9))
    found: dict[str, list[Tensor]] = {}
    with engine.evaluating(), torch.no_grad():  # ranks may differ in their passes, and before all
        for _ in range(rank + 1):
            engine.module(samples()[:2])
    assert all(isinstance(p, DTensor) for p in engine.model.parameters())
    for name, shares in SHARES.items():
        start = sum(shares[:rank])
        mine = list(samples()[start : start + shares[rank]].split(MICRO))
        idle = -(-max(shares) // MICRO) - len(mine)
        engine.begin()
        for number in range(idle + len(mine)):
            if number == idle + len(mine) - 1:
                engine.last()
            if number < idle:
                engine.backward(loss_of(engine.module, samples()[:1]), 0.0)
            else:
                engine.backward(loss_of(engine.module, mine[number - idle]), 1.0)
        engine.finish()
        found[name] = [p.grad.full_tensor() for p in engine.model.parameters()]
    outs = []
    for _ in range(2):
        with engine.evaluating(), torch.no_grad():
            outs += [engine.module(samples()[:2]) for _ in range(rank + 1)]
    found["out"] = outs[:1]
    assert all(torch.equal(out, outs[0]) for out in outs)
    assert all(isinstance(p, DTensor) for p in engine.model.parameters())
    factor = engine.update(lambda: clip_gradients(engine.optimizer, 0.5))
    assert factor is not None
    found["factor"] = [factor]
    found["weights"] = list(engine.weights().values())
    state = engine.optimizer_state()
    found["momentum"] = [entry["momentum_buffer"] for entry in state["state"].values()]
    engine.load_weights(engine.weights())
    engine.load_optimizer_state(state)
    again = engine.optimizer_state()["state"]
    for entry, buffer in zip(again.values(), found["momentum"], strict=True):
        assert torch.equal(entry["momentum_buffer"], buffer)
    torch.save(found, folder / f"{rank}.pt")
    end_group()


@pytest.mark.parametrize("shard_ranks", [None, pytest.param(2, marks=pytest.mark.slow)])
def test_fsdp_equals_one_process(tmp_path: Path, shard_ranks: int | None) -> None:
    mp.start_processes(rank_main, (tmp_path, shard_ranks), nprocs=RANKS, start_method="forkserver")
    model = net()
    loss_of(model, samples()).backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    out = model(samples()[:2]).detach()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    factor = clip_gradients(optimizer, 0.5)
    assert float(factor) < 1
    optimizer.step()
    used = [p for p in model.parameters() if p in optimizer.state]
    for rank in range(RANKS):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name in SHARES:
            _close(found[name], gradients)
        _close(found["out"], [out])
        _close(found["factor"], [factor])
        _close(found["weights"], list(model.state_dict().values()))
        buffers = [b for b in found["momentum"] if b.any()]
        _close(buffers, [optimizer.state[p]["momentum_buffer"] for p in used])


def _close(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
