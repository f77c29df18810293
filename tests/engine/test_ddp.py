"""Gradient exchange on three real ranks against the sum computed by one process."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from largebatch.distributed import World, all_reduce
from largebatch.distributed.bucketing import choose_bucket_mb
from largebatch.distributed.cost_model import CostModel, Link
from largebatch.distributed.grid import Grid
from largebatch.distributed.selection import Selection
from largebatch.engine import DataParallel, DistributedConfig, bucket_size, build_engine
from largebatch.engine.bucket import make_buckets
from largebatch.processes.ending import end_group

RANKS = 3
LINKS = CostModel(Link(1e-5, 3e-8), Link(1e-5, 3e-8))  # a flat ring is the best on one host
SHARES = {"even": (4, 4, 4), "uneven": (7, 4, 1), "a rank without": (9, 3, 0)}


class Net(nn.Module):
    """A convolution in channels_last, a layer never used and one used in some steps only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.unused = nn.Linear(5, 5)
        self.sometimes = nn.Linear(8, 8)
        self.out = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor, sometimes: bool) -> torch.Tensor:
        h = self.conv(x).relu().mean((2, 3))
        return self.out(self.sometimes(h) if sometimes else h)


def make(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return Net().double().to(memory_format=torch.channels_last)


def samples() -> torch.Tensor:
    return torch.randn(12, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def loss(model: nn.Module, x: torch.Tensor, sometimes: bool) -> torch.Tensor:
    return model(x, sometimes).square().sum() / 12


def step(engine: DataParallel, x: torch.Tensor, micro: int, sometimes: bool) -> None:
    engine.begin()
    parts = list(x.split(micro)) if len(x) else []
    for number, part in enumerate(parts, 1):
        if number == len(parts):
            engine.last()
        loss(engine.model, part, sometimes).backward()
    engine.finish()


def rank_main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=RANKS
    )
    # Every rank starts from other weights: rank 0's are to win.
    engine = build_engine(
        make(seed=rank), World(rank, RANKS, rank, RANKS), DistributedConfig(bucket_mb=0.001)
    )
    found: dict[str, list[torch.Tensor]] = {
        "weights": [p.detach().clone() for p in engine.model.parameters()]
    }
    launched: list[int] = []
    original = engine.all_reduce.start

    def counted(tensor: torch.Tensor) -> object:
        launched.append(tensor.numel())
        return original(tensor)

    for name, shares in SHARES.items():
        start = sum(shares[:rank])
        mine = samples()[start : start + shares[rank]]
        for micro in (12, 2):
            engine.all_reduce.start = counted  # type: ignore[method-assign]
            launched.clear()
            step(engine, mine, micro, sometimes=True)
            engine.all_reduce.start = original  # type: ignore[method-assign]
            found[f"{name} {micro}"] = [p.grad.clone() for p in engine.model.parameters()]
            found[f"{name} {micro} messages"] = [torch.tensor(launched)]
    step(engine, samples()[4 * rank : 4 * rank + 4], 2, sometimes=False)
    found["left out"] = [p.grad.clone() for p in engine.model.parameters()]
    engine.register_comm_hook("twice", twice)
    step(engine, samples()[4 * rank : 4 * rank + 4], 12, sometimes=True)
    found["hook"] = [p.grad.clone() for p in engine.model.parameters()]
    found["sizes"] = sizes_by_auto(rank)
    torch.save(found, folder / f"{rank}.pt")
    end_group()


def deep() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(300, 300) for _ in range(10))).double()


def sizes_by_auto(rank: int) -> dict[str, list[list[int]]]:
    """Return the buckets of six steps each of a run, of its continuation and of another grid's."""
    all_reduce.select = lambda algorithms: Selection("auto", algorithms.topology, "fp32", LINKS)
    world, config = World(rank, RANKS, rank, RANKS), DistributedConfig(bucket_mb="auto")
    found, state = {}, None
    ticks = count()  # rank r's backward passes take 0.1 (r + 1) s
    bucket_size.time = SimpleNamespace(perf_counter=lambda: 0.1 * (rank + 1) * next(ticks))
    for name in ("run", "continued", "elsewhere"):
        engine = build_engine(deep(), world, config)
        assert isinstance(engine, DataParallel)
        if state is not None:
            other = {**state, "topology": "another"}
            engine.load_exchange_state(state if name == "continued" else other)
        found[name] = []
        for _ in range(6):
            engine.begin()
            found[name].append([bucket.buffer().nbytes for bucket in engine._buckets])
            engine.last()
            engine.model(torch.ones(2, 300, dtype=torch.float64)).sum().backward()
            engine.finish()
        reference = deep()
        reference(torch.ones(2, 300, dtype=torch.float64)).sum().backward()
        for mine, alone in zip(engine.model.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, RANKS * alone.grad)
        state = engine.exchange_state()
    return found


def twice(state: object, bucket: object) -> torch.futures.Future:
    assert state == "twice"
    future = dist.all_reduce(bucket.buffer(), async_op=True).get_future()  # type: ignore[attr-defined]
    return future.then(lambda done: done.value()[0] * 2)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[torch.Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(rank_main, (folder,), nprocs=RANKS, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


def expected(sometimes: bool = True) -> list[torch.Tensor]:
    model = make(seed=0)
    loss(model, samples(), sometimes).backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


def test_all_ranks_start_from_rank_zero(found):
    for rank in found:
        for tensor, parameter in zip(rank["weights"], make(0).parameters(), strict=True):
            assert torch.equal(tensor, parameter)


@pytest.mark.parametrize("name", SHARES)
@pytest.mark.parametrize("micro", [12, 2])
def test_gradients_are_the_sum_over_ranks(found, name, micro):
    for rank in found:
        for gradient, reference in zip(rank[f"{name} {micro}"], expected(), strict=True):
            torch.testing.assert_close(gradient, reference, rtol=1e-12, atol=1e-14)
            assert gradient.stride() == reference.stride()


@pytest.mark.parametrize("key", [f"{n} {m}" for n in SHARES for m in (12, 2)] + ["hook"])
def test_all_ranks_hold_the_same_bits(found, key):
    for rank in found[1:]:
        assert all(map(torch.equal, rank[key], found[0][key]))


def test_one_message_a_bucket_whatever_the_micro_batches(found):
    parameters = list(make(0).parameters())
    sizes = [bucket.buffer().numel() for bucket in make_buckets(parameters, 0.001)]
    assert len(sizes) > 2
    for rank in found:
        for name in SHARES:
            for micro in (12, 2):
                assert rank[f"{name} {micro} messages"][0].tolist() == sizes


def test_a_layer_left_out_has_zero_gradients(found):
    for rank in found:
        for gradient, reference in zip(rank["left out"], expected(False), strict=True):
            torch.testing.assert_close(gradient, reference, rtol=1e-12, atol=1e-14)


def test_a_hook_exchanges_in_place_of_the_sum(found):
    for gradient, reference in zip(found[0]["hook"], expected(), strict=True):
        torch.testing.assert_close(gradient, 2 * reference, rtol=1e-12, atol=1e-14)


def test_auto_times_the_first_steps_and_keeps_what_it_decided(found):
    parameters = list(deep().parameters())
    bytes = sum(p.nbytes for p in parameters)
    # The slowest rank's backward pass decides.
    grid = Grid(1, RANKS)
    best = choose_bucket_mb(bytes, 0.1 * RANKS, lambda size: LINKS.time("flat", size, grid))
    chosen = [b.buffer().nbytes for b in make_buckets(parameters, best)]
    first = [b.buffer().nbytes for b in make_buckets(parameters, bucket_size.BUCKET_MB)]
    assert 1 < len(chosen) != len(first)
    for rank in found:
        assert rank["sizes"]["run"] == 3 * [first] + 3 * [chosen]
        assert rank["sizes"]["continued"] == 6 * [chosen]
        assert rank["sizes"]["elsewhere"] == rank["sizes"]["run"]


def test_alone_it_is_plain_autograd():
    engine = DataParallel(make(0), World())
    step(engine, samples(), 5, sometimes=True)
    for parameter, reference in zip(engine.model.parameters(), expected(), strict=True):
        torch.testing.assert_close(parameter.grad, reference, rtol=1e-12, atol=1e-14)


def test_buckets_hold_every_parameter_once_last_first():
    parameters = [nn.Parameter(torch.zeros(n)) for n in (10, 300, 5, 5, 700, 1)]
    frozen = nn.Parameter(torch.zeros(3), requires_grad=False)
    half = nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))
    buckets = make_buckets([*parameters, frozen, half], 0.002)
    held = [p for bucket in buckets for p in bucket.parameters()]
    assert {id(p) for p in held} == {id(p) for p in [*parameters, half]}
    assert len(held) == len(parameters) + 1
    for bucket in buckets:
        assert len({p.dtype for p in bucket.parameters()}) == 1
        assert bucket.buffer().nbytes <= 2000 or len(bucket.parameters()) == 1
    assert [bucket.is_last() for bucket in buckets] == [False] * (len(buckets) - 1) + [True]
