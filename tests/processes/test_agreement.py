"""What a rank says about another that is gone: a user's mistake there, or a lost rank."""

from __future__ import annotations

import pickle
import re
import socket
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from largebatch._errors import RunFailure, UserError
from largebatch.processes import agreement
from largebatch.processes.agreement import agreed, announce, gathered, require_same, together
from largebatch.processes.environment import World, free_port
from largebatch.processes.group import process_group


def world(rank: int, port: int) -> World:
    return World(rank, 2, rank, 2, "mpirun", port=port)


def rank_main(rank: int, port: int, announces: bool, folder: str) -> None:
    """Rank 1 fails on its own; rank 0 learns of it from its next collective."""
    here = world(rank, port)
    try:
        with process_group(here, "gloo", 300.0, torch.device("cpu")):
            if rank == 1:
                mistake = UserError("a mistake only rank 1 met")
                if announces:
                    announce(mistake, here)
                raise mistake
            dist.all_reduce(torch.ones(4))
    except (UserError, RunFailure) as error:
        Path(folder, f"{rank}").write_text(f"{type(error).__name__}: {error}")
    if rank == 1:
        time.sleep(1)  # it ends long after the rank that it took with it


@pytest.mark.parametrize("announces", [True, False])
def test_a_lost_rank_means_what_it_announced(tmp_path, announces):
    mp.start_processes(
        rank_main, (free_port(), announces, str(tmp_path)), nprocs=2, start_method="forkserver"
    )
    assert (tmp_path / "1").read_text() == "UserError: a mistake only rank 1 met"
    said = (tmp_path / "0").read_text()
    if announces:
        assert said == "UserError: "
    else:
        assert said.startswith("RunFailure: rank 0: another rank has ended")


def differing_main(rank: int, port: int, folder: str) -> None:
    here = world(rank, port)
    try:
        with process_group(here, "gloo", 60.0, torch.device("cpu")):
            require_same({"optim.lr": 0.1, "data": (1, 2)}, here)
            require_same({"optim.lr": 0.1 + rank, "data": (1, 2)}, here)
    except UserError as error:
        Path(folder, f"{rank}").write_text(str(error))


def test_what_differs_is_named_on_every_rank(tmp_path):
    mp.start_processes(
        differing_main, (free_port(), str(tmp_path)), nprocs=2, start_method="forkserver"
    )
    host = socket.gethostname()
    for rank in range(2):
        assert (tmp_path / f"{rank}").read_text() == (
            f"optim.lr=1.1 on rank 1 ({host}) but 0.1 on rank 0 ({host}): every rank needs the same"
            " config and data"
        )


def test_alone_a_mistake_is_raised_and_nothing_announced():
    alone = World()

    def work() -> None:
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        together(work, alone)
    announce(UserError("no"), alone)
    assert not dist.is_initialized()


VALUES = [None, 1, -2.5, 1e-300, "text \u00e9\udcff", [1, [2, None]], {"a": {"b": [True]}}]
FLAG = "ran"


class Payload:
    """Unpickled, it leaves a file."""

    def __init__(self, folder: str) -> None:
        self.path = Path(folder, FLAG)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.path,))


def values_main(rank: int, port: int, folder: str) -> None:
    here = world(rank, port)
    with process_group(here, "gloo", 60.0, torch.device("cpu")):
        for value in VALUES:
            assert agreed(value if rank == 0 else "of no account", here) == value
            assert gathered([rank, value], here) == [[0, value], [1, value]]
        assert gathered("x" * (1 + 10_000 * rank), here) == ["x", "x" * 10_001]

        def work() -> int:
            if rank == 1:
                raise UserError("a mistake \x1b[2J of rank 1")
            return 7

        with pytest.raises(UserError, match=r"a mistake .x1b.2J of rank 1"):
            together(work, here)
        assert together(lambda: rank, here) == rank
        require_same({"rate": float("nan"), "data": (1, 2)}, here)
        with pytest.raises(UserError, match=r"new\.key=None on rank 1"):
            require_same({"rate": 1} if rank else {"rate": 1, "new.key": 3}, here)
    Path(folder, f"{rank}").touch()


def test_values_arrive_as_they_were(tmp_path):
    mp.start_processes(
        values_main, (free_port(), str(tmp_path)), nprocs=2, start_method="forkserver"
    )
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1"}


def evil_main(rank: int, port: int, folder: str, claimed: int) -> None:
    """Rank 1 speaks the protocol of pickled objects, and of one that claims to send much."""
    here = world(rank, port)
    try:
        with process_group(here, "gloo", 60.0, torch.device("cpu")):
            if rank == 0:
                gathered("a word", here)
            else:
                message = bytearray(pickle.dumps(Payload(folder)).ljust(400))
                size = torch.tensor([claimed or len(message)])
                dist.all_gather([torch.empty_like(size) for _ in range(2)], size)
                content = torch.frombuffer(message, dtype=torch.uint8)
                if not claimed:
                    dist.all_gather([torch.empty_like(content) for _ in range(2)], content)
    except RunFailure as failure:
        Path(folder, f"{rank}").write_text(str(failure))


@pytest.mark.parametrize(
    ("claimed", "said"), [(0, "sent what is no JSON"), (2**40, "1099511627776 bytes")]
)
def test_what_a_peer_sends_is_never_unpickled(tmp_path, claimed, said):
    mp.start_processes(
        evil_main, (free_port(), str(tmp_path), claimed), nprocs=2, start_method="forkserver"
    )
    assert "rank 1 " in (tmp_path / "0").read_text() and said in (tmp_path / "0").read_text()
    assert not (tmp_path / FLAG).exists()


def test_no_module_of_the_package_unpickles_what_it_is_handed():
    """Nor asks torch to: of data files one has a reader of its own that builds arrays alone."""
    readers = r"\b(pickle|cloudpickle|dill|marshal|shelve)\b|torch\.load\("
    words = readers + r"|(gather|broadcast|scatter)_object(_list)?\("
    package = Path(agreement.__file__).parents[1]
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(words, line.split("#")[0]) and not line.strip().startswith(('"', "A pickle"))
    }
    assert found <= {"data/cifar.py", "data/unpickle.py"}
