"""Groups that end and are made anew, and what a group does with unusual tensors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import largebatch.distributed
from largebatch.processes.environment import free_port

RANKS = 4
WAIT = timedelta(seconds=40)


def begin(name: str, rank: int, port: int, size: int = RANKS) -> None:
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group(name, address, world_size=size, rank=rank, timeout=WAIT)


def monitored_barrier() -> None:
    """Call torch's function; before 2.15 it asks for the name gloo, so then the group's own."""
    try:
        dist.monitored_barrier()
    except ValueError as error:
        if "only implemented for GLOO" not in str(error):
            raise
        group: Any = dist.group.WORLD
        group.monitored_barrier(WAIT)


def columns(rank: int) -> torch.Tensor:
    """Return every second column of a matrix: memory with gaps."""
    return (torch.arange(24.0).reshape(4, 6) + 100 * rank)[:, ::2]


def turned(rank: int) -> torch.Tensor:
    """Return a matrix of other strides on odd ranks: the same elements, another memory."""
    values = torch.arange(24.0).reshape(4, 6) + 100 * rank
    return values.t().contiguous().t() if rank % 2 else values


def wrong_collectives(rank: int, make: Callable[[int], torch.Tensor]) -> list[str]:
    """Return the names of the collectives that are not right on tensors from ``make``."""
    every = [make(other) for other in range(RANKS)]
    total = torch.stack(every).sum(0)
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def after(operate: Callable[[torch.Tensor], Any], tensor: torch.Tensor) -> torch.Tensor:
        operate(tensor)
        return tensor

    mine = make(rank)
    found["sum"] = after(dist.all_reduce, make(rank)), total
    average = after(lambda t: dist.all_reduce(t, dist.ReduceOp.AVG), make(rank))
    found["average"] = average, total / RANKS
    greatest = after(lambda t: dist.all_reduce(t, dist.ReduceOp.MAX), make(rank))
    found["max"] = greatest, every[-1]
    found["broadcast"] = after(lambda t: dist.broadcast(t, 1), make(rank)), every[1]
    reduced = after(lambda t: dist.reduce(t, 0), make(rank))
    found["reduce"] = (reduced, total) if rank == 0 else (mine, mine)
    received = make(rank)
    pair = rank ^ 1
    works = [dist.isend(mine, pair), dist.irecv(received, pair)]
    for work in works:
        work.wait()
    found["send and receive"] = received, every[pair]
    gathered = [make(rank) for _ in range(RANKS)]
    dist.all_gather(gathered, mine)
    found["all_gather"] = torch.stack(gathered), torch.stack(every)
    scattered = make(rank)
    dist.scatter(scattered, [value.clone() for value in every] if rank == 2 else None, 2)
    found["scatter"] = scattered, every[rank]
    exchanged = make(rank)
    dist.all_to_all_single(exchanged, mine)
    rows = torch.stack([value[rank : rank + 1] for value in every]).flatten(0, 1)
    found["all_to_all_single"] = exchanged, rows
    whole = torch.zeros(RANKS * mine.shape[0], mine.shape[1])
    dist.all_gather_into_tensor(whole, mine)
    found["all_gather_into_tensor"] = whole, torch.cat(every)
    part = make(rank)[:1]
    dist.reduce_scatter_tensor(part, mine)
    found["reduce_scatter_tensor"] = part, total[rank : rank + 1]
    work = dist.all_reduce(last := make(rank), async_op=True)
    assert work is not None
    work.get_future().wait()
    found["future"] = last, total
    return [name for name, (value, expected) in found.items() if not torch.equal(value, expected)]


def unusual(rank: int, folder: str, ports: list[int]) -> None:
    torch.set_num_threads(1)
    os.environ["LARGEBATCH_TORUS"] = "2x2"
    found: dict[str, Any] = {}
    for name, make in (("gaps", columns), ("turned", turned)):
        for algorithm in ("torus", "flat"):
            os.environ["LARGEBATCH_ALLREDUCE"] = algorithm
            begin("torus", rank, ports.pop())
            found[f"{name} {algorithm}"] = wrong_collectives(rank, make)
            dist.destroy_process_group()
    os.environ["LARGEBATCH_ALLREDUCE"] = "torus"
    begin("torus", rank, ports.pop())

    # One that is refused leaves the group as it was.
    for operation in (dist.ReduceOp.SUM, dist.ReduceOp.MAX):
        with pytest.raises(RuntimeError, match="share memory: clone"):
            dist.all_reduce(torch.ones(1).expand(4), operation)
    with pytest.raises(RuntimeError, match="share memory: clone"):
        dist.broadcast(torch.ones(1).expand(4), 0)
    dist.all_reduce(after := torch.ones(3))
    found["after a refusal"] = after.tolist()

    many = [torch.full((400, 400), float(i)) for i in range(16)]
    for tensor in many:
        dist.all_reduce(tensor, async_op=True)
    dist.barrier()
    found["after a barrier"] = [float(tensor.min()) for tensor in many]
    for tensor in many:
        dist.all_reduce(tensor, async_op=True)
    monitored_barrier()
    found["after a monitored barrier"] = [float(tensor.max()) for tensor in many]

    for name, operation in (("sum", dist.ReduceOp.SUM), ("max", dist.ReduceOp.MAX)):
        pair = [torch.full((3,), float(rank)), torch.ones(2) * rank]
        dist.all_reduce_coalesced(pair, op=operation)
        found[f"coalesced {name}"] = [tensor.tolist() for tensor in pair]
    pair = [torch.full((3,), float(rank)), torch.ones(2) * rank]
    group: Any = dist.group.WORLD
    future = group.allreduce_coalesced(pair).get_future()
    found["coalesced future"] = [tensor.tolist() for tensor in future.wait()]
    pair = [torch.full((3,), float(rank)), torch.ones(2) * rank]
    group.allreduce_coalesced(pair).wait()
    found["coalesced without options"] = [tensor.tolist() for tensor in pair]
    if rank == 3:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            dist.all_reduce(torch.ones(1000))
        found["profiled"] = [event.key for event in seen.key_averages()]
    else:
        dist.all_reduce(torch.ones(1000))
    dist.destroy_process_group()
    torch.save(found, Path(folder, f"{rank}.pt"))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("groups")
    mp.start_processes(
        unusual,
        (str(folder), [free_port() for _ in range(5)]),
        nprocs=RANKS,
        start_method="forkserver",
    )
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize("case", ["gaps torus", "gaps flat", "turned torus", "turned flat"])
def test_every_collective_is_right_on_any_memory(found, case):
    assert [rank[case] for rank in found] == [[]] * RANKS


def test_a_refused_tensor_costs_nothing(found):
    assert [rank["after a refusal"] for rank in found] == [[4.0] * 3] * RANKS


def test_a_barrier_waits_for_what_was_begun(found):
    for rank in found:
        assert rank["after a barrier"] == [4.0 * i for i in range(16)]
        assert rank["after a monitored barrier"] == [16.0 * i for i in range(16)]


def test_several_tensors_by_any_operation(found):
    for rank in found:
        assert rank["coalesced sum"] == [[6.0] * 3, [6.0] * 2]
        assert rank["coalesced max"] == [[3.0] * 3, [3.0] * 2]
        assert rank["coalesced future"] == [[6.0] * 3, [6.0] * 2]
        assert rank["coalesced without options"] == [[6.0] * 3, [6.0] * 2]


def test_the_profiler_shows_the_torus(found):
    assert any("torus" in key for key in found[3]["profiled"])


def alone(rank: int, folder: str, port: int) -> None:
    begin("torus", 0, port, size=1)
    for operation in (dist.ReduceOp.SUM, dist.ReduceOp.MAX):
        dist.all_reduce_coalesced([torch.ones(3)], op=operation)
        dist.all_reduce(torch.ones(3), operation)
    dist.barrier()
    monitored_barrier()
    dist.destroy_process_group()
    Path(folder, "done").touch()


def test_one_rank_alone_has_every_operation(tmp_path):
    mp.start_processes(alone, (str(tmp_path), free_port()), nprocs=1, start_method="forkserver")
    assert (tmp_path / "done").exists()


# Generations of groups: `python generations.py RANK BACKEND PORT...`, a port for each.
GENERATIONS = """
import gc, json, sys, psutil, torch, torch.distributed as dist
from datetime import timedelta
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from largebatch.distributed import torus_all_reduce, torus_hook
rank, backend, process = int(sys.argv[1]), sys.argv[2], psutil.Process()
hook, counts = torus_hook(), []
for port in sys.argv[3:]:
    wait = timedelta(seconds=40)
    store = dist.TCPStore("127.0.0.1", int(port), 2, rank == 0, wait)
    dist.init_process_group(backend, store=store, rank=rank, world_size=2, timeout=wait)
    ones = torch.ones(4)
    dist.all_reduce(ones)
    torus_all_reduce(ones)
    model = DistributedDataParallel(nn.Linear(2, 2, bias=False))
    model.register_comm_hook(None, hook)
    model(torch.full((1, 2), 1.0 + rank)).sum().backward()
    assert ones.tolist() == [4.0] * 4, ones
    assert model.module.weight.grad.tolist() == [[1.5, 1.5]] * 2, model.module.weight.grad
    dist.barrier()
    del model, store
    dist.destroy_process_group()
    gc.collect()
    counts.append((process.num_fds(), process.num_threads()))
print(json.dumps(counts), flush=True)
"""


def start(script: Path, rank: int, backend: str, ports: list[int]) -> subprocess.Popen[str]:
    root = str(Path(largebatch.distributed.__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, str(script), str(rank), backend, *map(str, ports)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "LARGEBATCH_TORUS": "2x1", "LARGEBATCH_WIRE": "bf16",
             "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> list[list[int]]:
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    counts: list[list[int]] = json.loads(output.splitlines()[-1])
    return counts


@pytest.mark.parametrize("backend", ["gloo", "torus"])
def test_a_process_takes_the_place_of_another(tmp_path, backend):
    """Rank 0 lives through two groups, rank 1 is another process in each."""
    script = tmp_path / "generations.py"
    script.write_text(GENERATIONS)
    ports = [free_port(), free_port()]
    zero = start(script, 0, backend, ports)
    ended(start(script, 1, backend, ports[:1]))
    ended(start(script, 1, backend, ports[1:]))
    assert len(ended(zero)) == 2


@pytest.mark.parametrize("backend", ["gloo", "torus"])
def test_groups_that_end_leave_neither_descriptors_nor_threads(tmp_path, backend):
    script = tmp_path / "generations.py"
    script.write_text(GENERATIONS)
    ports = [free_port() for _ in range(5)]
    ranks = [start(script, rank, backend, ports) for rank in range(2)]
    for rank in ranks:
        counts = ended(rank)
        assert counts[-1] == counts[1], counts
