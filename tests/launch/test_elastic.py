"""A host lost and a host that joins: the run goes on with those there are, as if nothing had been.

Every host is a torchrun agent of one rank, started by launch/torchrun_elastic.sh.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from largebatch.processes.environment import free_port
from largebatch.record import read_metrics

LAUNCH = Path(__file__).parents[2] / "launch" / "torchrun_elastic.sh"
# Slow while a file is there: however fast or busy the machine, the run waits for what comes to it.
MODEL = """
import os
import time
from torch import nn

class Perceptron(nn.Sequential):
    def forward(self, images):
        if self.training and os.path.exists(os.environ.get("SLOW", "")):
            time.sleep(0.4)
        return super().forward(images)

def build(num_classes):
    layers = nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, num_classes)
    return Perceptron(nn.Flatten(), *layers)
"""
RUN = [
    "--model.name=perceptron:build",
    "--batch.size=48",
    "--norm.kind=ghost",
    "--norm.ghost_size=8",
    "--precision.compute=fp64",
    "--optim.lr=0.05",
    "--optim.momentum=0.9",
    "--schedule.length=800st",
    "--checkpoint.every=10st",
    "--telemetry.hardware_every=0",
    "--distributed.heartbeat=8",
    "--distributed.timeout=60",
]
STARTED = re.compile(r"(\d) rank\(s\) on cpu")


def environment(folder: Path) -> dict[str, str]:
    """Return an environment that finds torchrun and, in ``folder``, the model."""
    (folder / "perceptron.py").write_text(MODEL)
    clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {
        **clean,
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}",
    }


def listens(host: str, port: int) -> bool:
    """Return whether somebody takes connections there."""
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


class Hosts:
    """Agents that share one run and one log, in order of their ranks."""

    def __init__(self, folder: Path) -> None:
        self.run, self.log = folder / "run", folder / "log.txt"
        self.slow = folder / "slow"
        self.slow.touch()
        self.agents: list[subprocess.Popen[bytes]] = []
        self.environment = {
            **environment(folder),
            "SLOW": str(self.slow),
            "LEAST": "2",
            "MOST": "4",
            "NPROC": "1",
            "RUN": "elastic",
            "LAST_CALL": "3",
            "ENDPOINT": f"127.0.0.1:{free_port()}",
        }

    def add(self, held: bool = False) -> None:
        """Start an agent; ``held``, it has its place in the order and waits for `release`.

        torchrun numbers agents of one address by their process id; the first to come keeps the
        rendezvous.
        """
        command = [str(LAUNCH), f"--run.dir={self.run}", *RUN]
        if held:
            command = ["bash", "-c", 'read -r; exec "$@"', "held", *command]
        with open(self.log, "ab") as log:
            self.agents.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE if held else subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self.environment,
                )
            )

    def meet(self) -> None:
        """Wait until an agent keeps the rendezvous."""
        host, port = self.environment["ENDPOINT"].split(":")
        self.until(lambda: listens(host, int(port)), "a rendezvous")

    def release(self, agent: int) -> None:
        """Let a held agent go on."""
        stdin = self.agents[agent].stdin
        assert stdin is not None
        stdin.close()

    def lose(self, agent: int) -> None:
        """Kill an agent and its rank at once."""
        lost = psutil.Process(self.agents.pop(agent).pid)
        for process in (*lost.children(recursive=True), lost):
            process.kill()

    def sizes(self) -> list[int]:
        """Return the numbers of ranks so far, each as often as it changed."""
        return [int(size) for size, _ in groupby(STARTED.findall(self.output()))]

    def steps(self) -> int:
        path = self.run / "metrics.jsonl"
        return max((line["step"] for line in read_metrics(path)), default=0) if path.exists() else 0

    def until(self, condition: Callable[[], bool], what: str, seconds: float = 200) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            over = any(agent.poll() is not None for agent in self.agents)
            assert not over and time.monotonic() < deadline, f"not {what}:\n{self.output()}"
            time.sleep(0.1)

    def trains(self, ranks: int) -> None:
        """Wait until so many ranks are under way."""
        self.until(lambda: self.sizes()[-1:] == [ranks], f"{ranks} ranks")
        begun = self.steps()
        self.until(lambda: self.steps() > begun + 20, "training")

    def output(self) -> str:
        return self.log.read_text(errors="replace")


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    started = Hosts(tmp_path)
    yield started
    while started.agents:
        if started.agents[0].poll() is None:
            started.lose(0)
        else:
            started.agents.pop(0)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of the run of one process that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    command = [sys.executable, "-m", "largebatch", "train", f"--run.dir={folder / 'run'}", *RUN]
    subprocess.run(command, check=True, timeout=280, env=environment(folder))
    return folder / "run"


def check_same(expected: Path, found: Path) -> None:
    lines = read_metrics(expected / "metrics.jsonl")
    others = read_metrics(found / "metrics.jsonl")
    assert len(lines) == len(others) > 800
    for a, b in zip(lines, others, strict=True):
        assert (a["step"], a.get("order_hash")) == (b["step"], b.get("order_hash"))
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-8)
    weights = [load_file(run / "weights.safetensors") for run in (expected, found)]
    assert weights[0].keys() == weights[1].keys()
    whole, other = (torch.cat([t.double().flatten() for t in w.values()]) for w in weights)
    assert float((other - whole).norm() / whole.norm()) < 1e-8


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "lost",
    [pytest.param(0, id="the first"), pytest.param(2, id="the last", marks=pytest.mark.long)],
)
def test_a_host_is_lost_and_another_joins(lost, undisturbed, hosts):
    hosts.add(held=True)  # rank 0 is not where the rendezvous is kept
    hosts.add()
    hosts.meet()
    hosts.release(0)
    hosts.add()
    hosts.trains(3)
    hosts.lose(lost)
    hosts.trains(2)
    hosts.add()
    hosts.trains(3)
    hosts.slow.unlink()
    for agent in hosts.agents:
        assert agent.wait(300) == 0, hosts.output()
    assert hosts.sizes()[-3:] == [3, 2, 3], hosts.output()
    check_same(undisturbed, hosts.run)
