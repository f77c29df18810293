"""Runs of the real command, in processes of their own."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from largebatch.cli import main
from largebatch.record import read_metrics


@dataclass
class Finished:
    """What a command left."""

    directory: Path
    code: int
    output: str

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return read_metrics(self.directory / "metrics.jsonl")

    @property
    def summary(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.directory / "summary.json").read_text())
        return loaded

    @property
    def weights(self) -> dict[str, Tensor]:
        return load_file(self.directory / "weights.safetensors")

    def lines(self, split: str) -> list[dict[str, Any]]:
        return [line for line in self.metrics if line["split"] == split]


class Running:
    """A training command under way.

    Args:
        directory: its run directory. process: the command, which is the launcher where nproc > 1.
    """

    def __init__(self, directory: Path, process: subprocess.Popen[str]) -> None:
        self.directory, self.process = directory, process

    def steps(self) -> int:
        """Return the last step in the metrics so far."""
        path = self.directory / "metrics.jsonl"
        lines = read_metrics(path) if path.exists() else []
        return max((line["step"] for line in lines), default=0)

    def wait_for(self, condition: Callable[[], bool], what: str, seconds: float = 400) -> None:
        """Poll until ``condition`` holds; fail if the run ends or time is up before."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None:
                raise AssertionError(f"ended before {what}:\n{self.end()}")
            assert time.monotonic() < deadline, f"never came: {what}"
            time.sleep(0.02)  # reading the metrics takes a core from the ranks

    def ranks(self) -> list[psutil.Process]:
        """Return the processes of the ranks, in order of rank."""
        found = {}
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                rank = child.environ().get("RANK")
            except psutil.Error:
                continue
            if rank is not None and child.ppid() == self.process.pid:
                found[int(rank)] = child
        return [found[rank] for rank in sorted(found)]

    def children(self) -> list[psutil.Process]:
        """Return every process that the command has started."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self, seconds: float = 120) -> str:
        """Wait for the end and return what was printed."""
        return self.process.communicate(timeout=seconds)[0]


Train = Callable[..., Finished]


def environment(**changes: str) -> dict[str, str]:
    """Return an environment for ranks that does not fight over two cores."""
    left = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "PYTEST_CURRENT_TEST")
    clean = {k: v for k, v in os.environ.items() if k not in left}
    return {**clean, "OMP_NUM_THREADS": "1", **changes}


AT_THE_START = environment()


def command(directory: Path, *arguments: str, nproc: int = 1) -> list[str]:
    """Return the command line of a training run."""
    return [
        sys.executable,
        "-m",
        "largebatch",
        "train",
        f"--run.dir={directory}",
        f"--run.nproc={nproc}",
        *arguments,
    ]


def command_main(
    arguments: list[str], folder: Path, variables: dict[str, str], output: Path
) -> None:
    """Be the command, in a process of its own that was forked with torch imported (../conftest.py).

    Half of a short run's time is that import.
    """
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    sys.path[:0] = filter(None, variables.get("PYTHONPATH", "").split(os.pathsep))
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, sys.stdout.fileno())
    os.dup2(descriptor, sys.stderr.fileno())
    sys.argv[1:] = arguments
    sys.exit(main())


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Return a function that trains to the end and checks the exit code.

    Variables of the environment are read by libraries as they load: where a test or ``changes`` has
    set one, all is loaded anew.
    """

    def run(name: str, *arguments: str, nproc: int = 1, code: int = 0, **changes: str) -> Finished:
        directory = tmp_path / name
        line = command(directory, *arguments, nproc=nproc)
        variables = environment(**changes)
        if {**variables, "PYTHONPATH": ""} != {**AT_THE_START, "PYTHONPATH": ""}:
            done = subprocess.run(line, capture_output=True, text=True, env=variables, timeout=300)
            returned, output = done.returncode, done.stdout + done.stderr
        else:
            said = tmp_path / f"{name}.txt"
            said.write_text("")
            process = multiprocessing.get_context("forkserver").Process(
                target=command_main, args=(line[3:], Path.cwd(), variables, said)
            )
            process.start()
            process.join(300)
            output = said.read_text()
            if process.exitcode is None:
                process.kill()
                pytest.fail(f"the run takes more than five minutes:\n{output}")
            returned = process.exitcode
        assert returned == code, output
        return Finished(directory, returned, output)

    return run


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Return a function that starts a run; what still runs at the end of a test is killed."""
    started: list[Running] = []

    def run(name: str, *arguments: str, nproc: int = 1, **changes: str) -> Running:
        process = subprocess.Popen(
            command(tmp_path / name, *arguments, nproc=nproc),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(**changes),
        )
        started.append(Running(tmp_path / name, process))
        return started[-1]

    yield run
    for one in started:
        if one.process.poll() is None:
            for process in [*one.ranks(), psutil.Process(one.process.pid)]:
                process.kill()
            one.process.communicate()


@pytest.fixture
def goes_on(train: Train, begin: Callable[..., Running]) -> Callable[..., Finished]:
    """Return a function that kills a run of three ranks, and has it go on with three and with two.

    Three end with the bits of a run that was left alone, which is returned; two with its weights
    and its loss to 1e-9.
    """

    def check(*options: str, step: int, killed: signal.Signals = signal.SIGKILL) -> Finished:
        whole = train("whole", *options, nproc=3)
        for name, nproc in (("same", 3), ("fewer", 2)):
            run = begin(name, *options, nproc=3)
            run.wait_for(lambda run=run: run.steps() >= step, f"step {step}")
            run.process.send_signal(killed)
            run.end()
            again = train(name, *options, nproc=nproc)
            assert "continuing at" in again.output
            assert again.summary["steps"] == whole.summary["steps"]
            assert again.summary["loss"] == pytest.approx(whole.summary["loss"], rel=1e-9)
            for key, tensor in whole.weights.items():
                assert torch.allclose(again.weights[key], tensor, rtol=1e-9, atol=1e-9), key
            if nproc == 3:
                assert again.summary["weights_sha256"] == whole.summary["weights_sha256"]
        return whole

    return check
