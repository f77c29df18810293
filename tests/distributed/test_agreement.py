"""What a rank says about another that is gone: a user's mistake there, or a lost rank."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from largebatch._errors import RunFailure, UserError
from largebatch.distributed.agreement import announce, together
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


def test_alone_a_mistake_is_raised_and_nothing_announced():
    alone = World()

    def work() -> None:
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        together(work, alone)
    announce(UserError("no"), alone)
    assert not dist.is_initialized()
