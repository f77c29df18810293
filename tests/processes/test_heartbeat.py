"""Signs of life: a silent rank, a slow one and a lost store are named, with what waits for them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from largebatch.processes import heartbeat
from largebatch.processes.environment import World, free_port
from largebatch.processes.heartbeat import VERDICT, Heartbeat
from largebatch.processes.rendezvous import serve

pytestmark = pytest.mark.timeout(600)

# Rank 0 holds the store here. What a rank does in each step is told by the scenario.
PROGRAM = """
import sys, time, torch, torch.distributed as dist
from datetime import timedelta
from largebatch._errors import RunFailure
from largebatch.processes.environment import World
from largebatch.processes.group import process_group
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_stopped_rank_that_holds_the_store_is_named(ranks: Start) -> None:
    run = ranks(2, 600.0, 6.0, "run")
    run.wait_until_running()
    run.processes[0].send_signal(signal.SIGSTOP)
    said = run.output(1)
    assert run.processes[1].returncode == 1, said
    assert "rank 0 on 127.0.0.1, which holds the rendezvous, has not answered rank 1 for" in said
    assert "rank 1 waits in gloo:all_reduce number" in said


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_slow_rank_is_said_and_the_run_goes_on(ranks: Start) -> None:
    run = ranks(2, 600.0, 4.0, "slow")
    said = run.output(0)
    assert run.processes[0].returncode == 0, said
    expected = f"rank 1 on {os.uname().nodename} (process {run.processes[1].pid}) keeps others"
    assert expected in said
    assert "in step 51, data; rank 0 waits in gloo:all_reduce number" in said
    assert run.output(1) == "running\n"
    assert run.processes[1].returncode == 0


@pytest.mark.slow
def test_a_rank_that_has_ended_in_good_order_is_not_missed(ranks: Start) -> None:
    run = ranks(2, 600.0, 6.0, "ends")
    assert run.output(0).endswith("seen\n")  # it may have said that it keeps rank 1 waiting
    assert run.output(1) == "running\n"
    assert [process.returncode for process in run.processes] == [0, 0]


@pytest.fixture
def beats(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[list[Heartbeat], dict[int, str]]]:
    """Three ranks' heartbeats in one process, over a real store, and what ended which of them."""
    store = serve(World())
    monkeypatch.setattr(heartbeat, "_in_flight", lambda: "gloo:all_reduce number 7 (of 123)")
    ends: dict[int, str] = {}
    every = [Heartbeat(World(rank, 3, launcher="mpirun"), 4.0, store) for rank in range(3)]
    for rank, each in enumerate(every):
        each.end = partial(ends.__setitem__, rank)
    yield every, ends
    for each in every:
        each.close()


def wait_for(condition: Callable[[], object], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_silence_is_judged_by_rank_0_and_told_to_all(beats: Any) -> None:
    every, ends = beats
    every[1].activity.step, every[1].activity.doing = 11, "optimizer"
    time.sleep(1.5)
    every[1]._closed.set()  # its thread falls silent, and says no goodbye
    wait_for(lambda: len(ends) == 2)
    assert set(ends) == {0, 2}
    assert ends[0] == ends[2]
    host = os.uname().nodename
    assert ends[0].startswith(f"rank 1 on {host} (process {os.getpid()}) gives no sign of life for")
    assert "it was last in step 12, optimizer;" in ends[0]
    assert "rank 0 waits in gloo:all_reduce number 7 (of 123); the same command" in ends[0]
    assert every[0].account() == ends[0]


def test_without_rank_0_the_others_judge_themselves(beats: Any) -> None:
    every, ends = beats
    time.sleep(1.5)
    every[0]._closed.set()
    wait_for(lambda: len(ends) == 2)
    for rank in (1, 2):
        assert ends[rank].startswith(f"rank 0 on {os.uname().nodename} (process {os.getpid()})")
        assert f"rank {rank} waits in gloo:all_reduce number 7" in ends[rank]


@pytest.mark.slow
def test_a_rank_that_moves_while_others_wait_is_named(
    beats: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    every, ends = beats
    said = ""

    def slow() -> bool:
        nonlocal said
        every[2].activity.step += 1  # it does not wait: something of it moves
        said += capsys.readouterr().out
        return "keeps others waiting" in said

    wait_for(slow)
    assert f"rank 2 on {os.uname().nodename} (process {os.getpid()}) keeps others waiting" in said
    assert not ends
    every[2].activity.step = 50
    every[2].close()  # one that has said goodbye is not missed
    time.sleep(6)
    assert not ends


ESCAPES = "\x1b]0;title\x07\x1b[2Jno\rfault\x9b31m\u202eback\udcff"


def test_what_the_store_says_does_not_steer_the_terminal(beats: Any) -> None:
    """Whoever reaches the store can end the run, but a terminal shows text and nothing else."""
    every, ends = beats
    every[1]._store.set(VERDICT, ESCAPES.encode(errors="surrogateescape"))
    wait_for(lambda: len(ends) == 2)
    assert set(ends) == {1, 2}
    assert ends[1].isprintable() and ends[1] == ends[2] and "fault" in ends[1]
    assert every[0].account() == ends[1]


def test_beats_that_are_none_are_not_believed(beats: Any) -> None:
    """A beat with escapes for its host is a beat; one of another form is silence."""
    every, ends = beats
    time.sleep(1.5)
    every[1]._closed.set()
    every[2]._closed.set()
    beat = {**every[1]._beat(None), "host": ESCAPES, "doing": ESCAPES}
    time.sleep(0.6)
    every[1]._store.set("largebatch/heartbeat/1", json.dumps(beat))
    for content in ("", "[1]", "no JSON", '{"count": "x"}', "[" * 100_000):
        every[2]._store.set("largebatch/heartbeat/2", content)
        assert 2 not in every[0]._read([2])
    wait_for(lambda: 0 in ends)
    assert ends[0].startswith("rank 1 on \\x1b]0;title\\x07") and ends[0].isprintable()


def test_alone_there_is_nothing_to_watch() -> None:
    alone = Heartbeat(World(), 1.0)
    alone.note = lambda: {"hardware": {"x": 1}}
    alone.activity.step = 7
    (beat,) = alone.beats().values()
    assert (beat["step"], beat["hardware"]) == (7, {"x": 1})
    assert alone.account() == ""
    alone.close()
