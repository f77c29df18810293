"""The same run started by each launcher's environment: same samples, same losses.

The launchers themselves start it in tests/launch.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
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


def mpiexec(rank: int) -> dict[str, str]:
    return {
        "PMI_RANK": str(rank),
        "PMI_SIZE": "2",
        "MPI_LOCALRANKID": str(rank),
        "MPI_LOCALNRANKS": "2",
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
    for launcher, variables in (
        ("mpirun", mpirun),
        ("mpiexec", mpiexec),
        ("srun", srun),
    ):
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


BROKEN = {
    "a rank beyond the last": ({"RANK": "3", "WORLD_SIZE": "2"}, 2, "RANK='3' is not a whole"),
    "no rank": ({"RANK": "0", "WORLD_SIZE": "0"}, 2, "WORLD_SIZE='0' is not a whole number"),
    "no ranks here": ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "0"}, 2, "LOCAL_WORLD"),
    "MPI half told": ({"PMI_RANK": "1", "PMI_SIZE": "2"}, 2, "PMI_RANK is set, but nothing says"),
    "an unknown host": (
        {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "no-host.invalid"},
        2,
        "MASTER_ADDR='no-host.invalid' is no host known here",
    ),
    "a taken port": (
        {"RANK": "0", "WORLD_SIZE": "2"},
        1,
        "is not to be had (Address already in use)",
    ),
    "nobody": (
        {"RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "1"},
        1,
        "nobody answers at 127.0.0.1:1",
    ),
}


QUICK = ("a taken port", "a rank beyond the last")  # the others' words are tested in distributed


@pytest.mark.parametrize(
    "what", [w if w in QUICK else pytest.param(w, marks=pytest.mark.slow) for w in BROKEN]
)
def test_a_start_that_cannot_be_is_one_line(tmp_path, what):
    """Long before the half hour of distributed.timeout."""
    variables, code, said = BROKEN[what]
    with socket.create_server(("127.0.0.1", 0)) as holder:
        taken = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(holder.getsockname()[1])}
        if "PMI_RANK" in variables:
            taken = {}
        begun = time.monotonic()
        process = subprocess.run(
            [sys.executable, "-m", "largebatch", "train", f"--run.dir={tmp_path / 'run'}",
             "--distributed.timeout=4"],
            capture_output=True, text=True, timeout=100,
            env={**os.environ, "OMP_NUM_THREADS": "1", **taken, **variables},
        )  # fmt: skip
    assert process.returncode == code, process.stderr
    assert process.stderr.startswith("largebatch: ") and said in process.stderr
    assert process.stderr.count("\n") == 1 and not process.stdout, process.stderr
    assert time.monotonic() - begun < 90
    assert not (tmp_path / "run").exists()
