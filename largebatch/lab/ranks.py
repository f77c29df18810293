"""Run a function on real ranks for an experiment: processes of this machine over gloo."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import spawn

from largebatch._cores import usable_cores
from largebatch.processes import World
from largebatch.processes.environment import free_port
from largebatch.processes.group import process_group
from largebatch.record import json_text

Work = Callable[..., Any]
TIMEOUT = 600.0  # seconds that a message may take


def on_ranks(ranks: int, work: Work, *arguments: Any) -> list[Any]:
    """Run ``work(world, *arguments)`` on ``ranks`` ranks; return the results in rank order.

    Args:
        work: a module-level function, which the processes import; its result must be of JSON's
            types.
    """
    with tempfile.TemporaryDirectory() as folder:
        spawn(_rank_main, (ranks, free_port(), Path(folder), work, arguments), nprocs=ranks)
        files = [Path(folder) / f"{rank}.json" for rank in range(ranks)]
        return [json.loads(file.read_text()) for file in files]


def _rank_main(
    rank: int, ranks: int, port: int, folder: Path, work: Work, arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(max(1, usable_cores() // ranks))
    world = World(rank, ranks, rank, ranks, "mpirun", port=port)
    with process_group(world, "gloo", TIMEOUT, torch.device("cpu")):
        answer = work(world, *arguments)
    (folder / f"{rank}.json").write_text(json_text(answer))
