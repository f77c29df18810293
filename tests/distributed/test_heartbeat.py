"""Signs of life: a silent rank, a slow one and a lost store are named, with what waits for them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from largebatch.distributed.environment import World, free_port
from largebatch.distributed.heartbeat import Heartbeat

pytestmark = pytest.mark.timeout(600)

# Rank 0 holds the store here. What a rank does in each step is told by the scenario.
PROGRAM = """
import sys, time, torch, torch.distributed as dist
from datetime import timedelta
from largebatch._errors import RunFailure
from largebatch.distributed.environment import World
from largebatch.distributed.group import process_group
rank, size, port, timeout, patience, scenario = sys.argv[1:]
rank, size = int(rank), int(size)
world = World(rank, size, rank, size, "mpirun", port=int(port))
try:
    with process_group(world, "gloo", 600.0, torch.device("cpu"), float(patience)) as beat:
        group = dist.new_group(timeout=timedelta(seconds=float(timeout)))
        beat.note = lambda: {"hardware": {"seat": rank}}
        for step in range(10**9):
            beat.activity.step, beat.activity.doing = step, "compute"
            if step == 3:
                print("running", flush=True)
            if scenario == "ends" and step == 200:
                if rank == 0:
                    time.sleep(float(patience) * 1.5)
                    assert sorted(beat.beats()) == list(range(size))
                    assert {r: b["hardware"] for r, b in beat.beats().items()} == {
                        r: {"seat": r} for r in range(size)}
                    print("seen", flush=True)
                break
            if scenario == "slow" and step == 50 and rank == 1:
                beat.activity.doing = "data"
                time.sleep(float(patience) * 3)
            if scenario == "stuck" and step == 50 and rank == 1:
                beat.activity.doing = "data"
                time.sleep(10**6)
            if scenario == "slow" and step == 60:
                break
            beat.activity.doing = "communication"
            dist.all_reduce(torch.ones(123), group=group)
            time.sleep(0.005)
except RunFailure as failure:
    print(f"failure: {failure}", flush=True)
    sys.exit(1)
"""


class Ranks:
    """Real gloo ranks, each a process."""

    def __init__(self, size: int, timeout: float, patience: float, scenario: str) -> None:
        port = str(free_port())
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(rank), str(size), port, str(timeout),
                 str(patience), scenario],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            for rank in range(size)
        ]  # fmt: skip

    def wait_until_running(self) -> None:
        for process in self.processes:
            assert process.stdout is not None
            while (line := process.stdout.readline()) != "running\n":
                assert line, "ended before its third step"

    def output(self, rank: int, seconds: float = 500) -> str:
        return self.processes[rank].communicate(timeout=seconds)[0]


@pytest.fixture
def ranks():
    started: list[Ranks] = []

    def start(*arguments) -> Ranks:
        started.append(Ranks(*arguments))
        return started[-1]

    yield start
    for each in started:
        for process in each.processes:
            process.kill()
            process.wait()


Start = Callable[..., Ranks]


def test_a_stopped_rank_is_named_with_host_and_collective(ranks: Start) -> None:
    """Long before the collective's own timeout of ten minutes."""
    run = ranks(3, 600.0, 6.0, "run")
    run.wait_until_running()
    stopped = run.processes[1]
    stopped.send_signal(signal.SIGSTOP)
    begun = time.monotonic()
    for rank in (0, 2):
        said = run.output(rank)
        assert run.processes[rank].returncode == 1, said
        assert f"rank 1 on {os.uname().nodename} (process {stopped.pid}) gives no sign" in said
        assert "rank 0 waits in gloo:all_reduce number" in said
        assert "(of 123)" in said
        assert said.count("\n") == 1, said
    assert time.monotonic() - begun < 60


def test_a_stopped_rank_that_holds_the_store_is_named(ranks: Start) -> None:
    run = ranks(2, 600.0, 6.0, "run")
    run.wait_until_running()
    run.processes[0].send_signal(signal.SIGSTOP)
    said = run.output(1)
    assert run.processes[1].returncode == 1, said
    assert "rank 0 on 127.0.0.1, which holds the rendezvous, has not answered rank 1 for" in said
    assert "rank 1 waits in gloo:all_reduce number" in said


def test_a_collective_that_times_out_names_who_is_behind(ranks: Start) -> None:
    run = ranks(2, 3.0, 60.0, "stuck")
    said = run.output(0)
    assert run.processes[0].returncode == 1, said
    host, process = os.uname().nodename, run.processes[1].pid
    expected = f"failure: rank 0: rank 1 on {host} (process {process}) keeps others waiting: it is"
    assert f"{expected} in step 51, data" in said


def test_a_killed_rank_is_named(ranks: Start) -> None:
    run = ranks(3, 600.0, 60.0, "run")
    run.wait_until_running()
    run.processes[2].kill()
    for rank in (0, 1):
        said = run.output(rank)
        assert f"failure: rank {rank}: rank 2 on {os.uname().nodename} (process" in said


def test_a_slow_rank_is_said_and_the_run_goes_on(ranks: Start) -> None:
    run = ranks(2, 600.0, 4.0, "slow")
    said = run.output(0)
    assert run.processes[0].returncode == 0, said
    expected = f"rank 1 on {os.uname().nodename} (process {run.processes[1].pid}) keeps others"
    assert expected in said
    assert "in step 51, data; rank 0 waits in gloo:all_reduce number" in said
    assert run.output(1) == "running\n"
    assert run.processes[1].returncode == 0


def test_a_rank_that_has_ended_in_good_order_is_not_missed(ranks: Start) -> None:
    run = ranks(2, 600.0, 6.0, "ends")
    assert run.output(0) == "running\nseen\n"
    assert run.output(1) == "running\n"
    assert [process.returncode for process in run.processes] == [0, 0]


def test_alone_there_is_nothing_to_watch(tmp_path: Path) -> None:
    heartbeat = Heartbeat(World(), 1.0)
    heartbeat.note = lambda: {"hardware": {"x": 1}}
    heartbeat.activity.step = 7
    (beat,) = heartbeat.beats().values()
    assert (beat["step"], beat["hardware"]) == (7, {"x": 1})
    assert heartbeat.account() == ""
    heartbeat.close()
