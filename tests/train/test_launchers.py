"""The same run started by each launcher's environment: same samples, same losses.

The launchers themselves start it in tests/launch.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from largebatch.record import read_metrics

RUN = [
    "--data.limit=200",
    "--batch.size=64",
    "--norm.kind=ghost",
    "--norm.ghost_size=16",
    "--precision.compute=fp64",
    "--optim.lr=0.05",
    "--schedule.length=6st",
]


def mpirun(rank: int) -> dict[str, str]:
    return {
        "OMPI_COMM_WORLD_RANK": str(rank),
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_LOCAL_RANK": str(rank),
        "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
        "PMIX_NAMESPACE": f"job-{os.getpid()}@1",
    }


def srun(rank: int) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": str(rank),
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_LOCALID": str(rank),
        "SLURM_NODEID": "0",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_STEP_NODELIST": "localhost",
    }


def start(directory: Path, variables: dict[str, str]) -> subprocess.Popen[str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return subprocess.Popen(
        [sys.executable, "-m", "largebatch", "train", f"--run.dir={directory}", *RUN],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**clean, "OMP_NUM_THREADS": "1", **variables},
    )


@pytest.mark.slow
def test_a_launcher_changes_nothing(train, tmp_path):
    alone = train("alone", *RUN).lines("train")
    for launcher, variables in (("mpirun", mpirun), ("srun", srun)):
        directory = tmp_path / launcher
        started = [start(directory, variables(rank)) for rank in range(2)]
        for process in started:
            output = process.communicate(timeout=240)[0]
            assert process.returncode == 0, output
        metrics = read_metrics(directory / "metrics.jsonl")
        lines = [line for line in metrics if line["split"] == "train"]
        assert [a["order_hash"] for a in alone] == [b["order_hash"] for b in lines]
        for a, b in zip(alone, lines, strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-9)
