"""What a rank says about another that is gone: a user's mistake there, or a lost rank."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from largebatch._errors import RunFailure, UserError
from largebatch.distributed.agreement import announce, require_same, together
from largebatch.distributed.environment import World, free_port
from largebatch.distributed.group import process_group


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
    mp.spawn(rank_main, (free_port(), announces, str(tmp_path)), nprocs=2)
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
    mp.spawn(differing_main, (free_port(), str(tmp_path)), nprocs=2)
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
