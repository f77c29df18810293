"""Back end torus, the hook and the function on four real processes: one spawn, many cases."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import largebatch.distributed
from largebatch._errors import UserError
from largebatch.distributed import Topology, World, stats, torus_all_reduce, torus_hook
from largebatch.distributed.preference import Preference
from largebatch.engine import DataParallel
from largebatch.processes.environment import free_port

RANKS = 4
HOSTS = [0, 0, 1, 1]


def everything(rank: int) -> dict[str, Any]:
    """Call every collective once; each value is alike on all ranks or indexed by rank."""
    mine = torch.arange(4.0) + 10 * rank
    found: dict[str, Any] = {}
    for name, op in (("sum", dist.ReduceOp.SUM), ("mean", dist.ReduceOp.AVG),
                     ("max", dist.ReduceOp.MAX), ("product", dist.ReduceOp.PRODUCT)):  # fmt: skip
        found[name] = mine.clone()
        work = dist.all_reduce(found[name], op, async_op=True)
        assert work is not None and work.wait()
        assert work.is_completed()
    found["several"] = [mine.clone(), 2 * mine]
    dist.group.WORLD.allreduce(found["several"]).wait()
    found["broadcast"] = mine.clone()
    dist.broadcast(found["broadcast"], 2)
    gathered = [torch.zeros(4) for _ in range(RANKS)]
    dist.all_gather(gathered, mine)
    found["all_gather"] = torch.stack(gathered)
    found["into_tensor"] = torch.zeros(4 * RANKS)
    dist.all_gather_into_tensor(found["into_tensor"], mine)
    scattered = torch.zeros(1)
    dist.reduce_scatter_tensor(scattered, mine)
    exchanged = torch.zeros(4)
    dist.all_to_all_single(exchanged, mine)
    found["of this rank"] = torch.stack([scattered, exchanged[:1]])
    objects: list[Any] = [None] * RANKS
    dist.all_gather_object(objects, {"rank": rank})
    found["objects"] = objects
    if rank == 0:
        dist.send(mine, 3)
    elif rank == 3:
        dist.recv(mine, 0)
    part = dist.new_group([0, 2])
    if rank in (0, 2):
        found["part"] = torch.ones(2)
        dist.all_reduce(found["part"], group=part)
    coalesced = [torch.ones(3), torch.ones(2) * rank]
    with dist._coalescing_manager():
        for tensor in coalesced:
            dist.all_reduce(tensor)
    found["coalesced"] = coalesced
    # The same memory twice, and a part of it; often, for seldom one is read after another's end.
    shared = [torch.full((3,), float(rank + i)) for i in range(200)]
    works = [dist.group.WORLD.allreduce_coalesced([each, each, each[1:]]) for each in shared]
    assert all(work.wait() for work in works)
    found["shared"] = torch.stack(shared)
    dist.barrier()
    return found


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 300), nn.Tanh(), nn.Linear(300, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def gradients(model: nn.Module, rank: int) -> list[torch.Tensor]:
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(rank))
    model.zero_grad()
    model(x).square().sum().backward()
    return [
        parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None
    ]


def wrapped(hook: Any = None) -> DistributedDataParallel:
    torch.manual_seed(1)
    model = DistributedDataParallel(Net(), bucket_cap_mb=0.002)
    if hook is not None:
        model.register_comm_hook(None, hook)
    return model


def on_backend(rank: int, folder: str, port: int) -> None:
    torch.set_num_threads(1)
    os.environ["LARGEBATCH_TORUS"] = "2x2"
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("torus", init_method=address, rank=rank, world_size=RANKS)
    assert dist.get_backend() == "torus"
    found = everything(rank)
    before = stats()["torus"]["calls"]
    found["ddp"] = [gradients(wrapped(), rank) for _ in range(2)]
    found["ddp calls"] = stats()["torus"]["calls"] - before
    dist.destroy_process_group()
    torch.save(found, Path(folder, f"torus-{rank}.pt"))


def on_gloo(rank: int, folder: str, port: int) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=RANKS)
    topology = Topology.from_hosts(HOSTS)
    found: dict[str, Any] = {"plain": gradients(wrapped(), rank)}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        hook = torus_hook(topology, wire_dtype=dtype)
        found[name] = gradients(wrapped(hook), rank)
        found[f"{name} norms"] = hook.squared_norms()
        assert hook.squared_norms() == (0.0, 0.0)
    own = gradients(nn.Sequential(wrapped().module), rank)
    found["own norm"] = sum(float(g.double().square().sum()) for g in own)
    torch.manual_seed(1)
    engine = DataParallel(Net(), World(rank, RANKS, rank, RANKS), 0.002, Preference(grid="2x2"))
    engine.begin()
    engine.last()
    gradients_of = torch.randn(5, 8, generator=torch.Generator().manual_seed(rank))
    engine.model(gradients_of).square().sum().backward()
    engine.finish()
    found["engine"] = [p.grad.clone() for p in engine.model.parameters() if p.grad is not None]
    os.environ["LARGEBATCH_TORUS"] = "2x2"
    found["function"] = torch.arange(7.0) * (rank + 1)
    assert torus_all_reduce(found["function"]) is None
    work = torus_all_reduce(torch.ones(3), dist.ReduceOp.AVG, async_op=True)
    assert work is not None and work.wait()
    with pytest.raises(ValueError, match="not SUM or AVG"):
        torus_all_reduce(torch.ones(3), dist.ReduceOp.MAX)
    found["stats"] = stats()
    dist.barrier()
    dist.destroy_process_group()
    torch.save(found, Path(folder, f"gloo-{rank}.pt"))


def both(rank: int, folder: str, ports: tuple[int, int]) -> None:
    on_backend(rank, folder, ports[0])
    on_gloo(rank, folder, ports[1])


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(
        both, (str(folder), (free_port(), free_port())), nprocs=RANKS, start_method="forkserver"
    )
    return {
        kind: [torch.load(folder / f"{kind}-{rank}.pt", weights_only=True) for rank in range(RANKS)]
        for kind in ("torus", "gloo")
    }


def test_every_collective_is_right(found):
    rows = torch.stack([torch.arange(4.0) + 10 * rank for rank in range(RANKS)])
    for rank, values in enumerate(found["torus"]):
        assert torch.equal(values["sum"], rows.sum(0))
        assert torch.equal(values["mean"], rows.mean(0))
        assert torch.equal(values["max"], rows[3])
        assert torch.equal(values["product"], rows.prod(0))
        assert all(torch.equal(each, 3 * rows.sum(0)) for each in values["several"])
        assert torch.equal(values["broadcast"], rows[2])
        assert torch.equal(values["all_gather"], rows)
        assert torch.equal(values["into_tensor"], rows.view(-1))
        assert values["of this rank"].flatten().tolist() == [60.0 + 4 * rank, float(rank)]
        assert values["objects"] == [{"rank": other} for other in range(RANKS)]
        assert [tensor.tolist() for tensor in values["coalesced"]] == [[4.0] * 3, [6.0] * 2]
        assert torch.equal(
            values["shared"], (4 * torch.arange(200.0) + 6).view(-1, 1).expand(-1, 3)
        )
        if rank in (0, 2):
            assert values["part"].tolist() == [2.0, 2.0]


def test_ddp_runs_on_it_unchanged(found):
    for values, plain in zip(found["torus"], found["gloo"], strict=True):
        assert values["ddp calls"] >= 2
        for step in values["ddp"]:
            for gradient, reference in zip(step, plain["plain"], strict=True):
                torch.testing.assert_close(gradient, reference, rtol=1e-5, atol=1e-6)
    for values in found["torus"][1:]:
        for one, other in zip(values["ddp"][1], found["torus"][0]["ddp"][1], strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize(("wire", "tolerance"), [("fp32", 1e-5), ("bf16", 1e-2)])
def test_the_hook_averages_and_yields_both_norms(found, wire, tolerance):
    for values in found["gloo"]:
        for gradient, reference in zip(values[wire], values["plain"], strict=True):
            scale = float(reference.abs().max())
            torch.testing.assert_close(gradient, reference, rtol=0, atol=tolerance * scale)
        before, after = values[f"{wire} norms"]
        owns = sum(rank["own norm"] for rank in found["gloo"])
        assert before == pytest.approx(owns, rel=1e-5)
        result = sum(float(g.double().square().sum()) for g in values[wire])
        assert after == pytest.approx(result, rel=1e-5)


def test_the_engine_sums_over_it(found):
    for values in found["gloo"]:
        for gradient, reference in zip(values["engine"], values["plain"], strict=True):
            torch.testing.assert_close(gradient, RANKS * reference, rtol=1e-5, atol=1e-5)


def test_the_function_sums(found):
    for values in found["gloo"]:
        assert torch.equal(values["function"], 10 * torch.arange(7.0))
        assert values["stats"]["torus"]["calls"] > 0


def test_wrong_arguments_are_refused():
    with pytest.raises(UserError, match="wire_dtype 'int8': choose from fp32, bf16, fp16"):
        torus_hook(wire_dtype="int8")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="algorithm 'ring'"):
        torus_hook(algorithm="ring")
    with pytest.raises(UserError, match="init_process_group"):
        torus_all_reduce(torch.ones(2))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("LARGEBATCH_ALLREDUCE", "tours", "did you mean 'torus'"), ("LARGEBATCH_WIRE", "fp8", "bf16")],
)
def test_wrong_variables_are_refused(name, value, message):
    with pytest.raises(UserError, match=message):
        Preference.from_environment({name: value})


def test_variables_are_read():
    variables = {"LARGEBATCH_TORUS": "2x4", "LARGEBATCH_WIRE": "bf16"}
    assert Preference.from_environment(variables).wanted == "torus"
    assert (
        Preference.from_environment({**variables, "LARGEBATCH_ALLREDUCE": "flat"}).wanted == "flat"
    )
    assert Preference.from_environment({}) == Preference("auto", None, "fp32")


MPI_SCRIPT = """
import torch, torch.distributed as dist
from mpi4py import MPI
import largebatch.distributed
from largebatch.distributed import Topology, detect, stats
from largebatch.distributed.topology import host_identity
world = detect()
found = Topology.from_hosts(MPI.COMM_WORLD.allgather(host_identity()), "2x2")
dist.init_process_group("torus", init_method=f"tcp://{world.address}:{world.port}",
                        rank=world.rank, world_size=world.world_size)
x = torch.full((1001,), float(world.rank))
dist.all_reduce(x)
assert x.tolist() == [6.0] * 1001
assert stats()["torus"]["calls"] == 1
group = dist.group.WORLD
assert group.reducer(x.device).topology == found
dist.destroy_process_group()
print("rank", world.rank, "over", world.launcher, "sums", flush=True)
"""


@pytest.mark.timeout(300)
def test_under_mpirun(tmp_path):
    pytest.importorskip("mpi4py")
    mpirun = shutil.which("mpirun") or shutil.which(str(Path(sys.executable).parent / "mpirun"))
    if mpirun is None:
        pytest.skip("mpirun is not installed")
    (tmp_path / "script.py").write_text(MPI_SCRIPT)
    done = subprocess.run(
        [mpirun, "-n", "4", "--oversubscribe", "--allow-run-as-root", sys.executable,
         str(tmp_path / "script.py")],
        capture_output=True, text=True, timeout=280,
        env={**os.environ, "LARGEBATCH_TORUS": "2x2",
             "PYTHONPATH": str(Path(largebatch.distributed.__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(line for line in done.stdout.splitlines() if line.startswith("rank")) == [
        f"rank {rank} over mpirun sums" for rank in range(4)
    ]
