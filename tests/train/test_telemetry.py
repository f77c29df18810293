"""What a run tells of its hardware and of its steps, and ranks that do not belong together."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from largebatch.processes.environment import World, free_port
from largebatch.processes.heartbeat import Heartbeat
from largebatch.record import read_metrics
from largebatch.schedule import BatchConfig, Duration, Schedule, ScheduleConfig
from largebatch.tasks import Classification, ClassificationConfig
from largebatch.train import telemetry as telemetry_module
from largebatch.train.hardware_lines import HardwareLines
from largebatch.train.step_times import StepTimes
from largebatch.train.telemetry import Telemetry

PHASES = {f"{name}_seconds" for name in ("data", "compute", "communication", "optimizer")}


@pytest.mark.slow
def test_a_run_tells_where_its_time_goes_and_what_every_rank_does(begin: Any) -> None:
    port = free_port()
    run = begin(
        "run",
        "--schedule.length=100000st",
        "--telemetry.hardware_every=0.2",
        f"--telemetry.prometheus_port={port}",
        nproc=2,
    )
    path = run.directory / "metrics.jsonl"

    def ranks_seen() -> set[int]:
        lines = read_metrics(path) if path.exists() else []
        found = (line for line in lines if line["split"] == "hardware")
        return {line["rank"] for line in found if set(line) >= PHASES}  # after a step of its own

    def scraped() -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                return answer.read().decode()
        except urllib.error.URLError:
            return ""

    run.wait_for(lambda: ranks_seen() == {0, 1}, "a reading of both ranks", 500)
    text = scraped()
    assert 'largebatch_loss{split="train"} ' in text
    host = socket.gethostname()
    for rank in (0, 1):
        labels = f'split="hardware",rank="{rank}",host="{host}"'
        assert f"largebatch_process_memory_bytes{{{labels}}} " in text
    run.process.terminate()
    assert run.process.wait(120) == 0, run.end()
    lines = read_metrics(path)
    for line in lines:
        if line["split"] == "train":
            assert set(line) >= PHASES
            assert 0 < sum(line[name] for name in PHASES) < 60
            assert line["compute_seconds"] > 0
            assert "samples_per_joule" not in line  # no power is known on a CPU
    fields = {name for line in lines if line["split"] == "hardware" for name in line}
    assert fields >= {"samples", "step", "epoch", "rank", "host", *PHASES}
    assert fields >= {"host_cpu_utilization", "host_memory_bytes", "process_memory_bytes"}
    assert not any(name.startswith("gpu") for name in fields)


@pytest.mark.parametrize("begin", [0, 600])
def test_the_rate_leaves_out_evaluations_wherever_they_fall(monkeypatch, begin: int) -> None:
    """Lines every fourth step, evaluations after every third: 0.5 s a step, 7 s each of these."""
    now = 100.0
    monkeypatch.setattr(telemetry_module, "time", SimpleNamespace(perf_counter=lambda: now))
    length = ScheduleConfig(length=Duration.parse("30st"))
    schedule = Schedule(length, BatchConfig(size=100), 0.1, "none", 3000, 1, None)
    lines: list[dict[str, Any]] = []
    task = Classification(ClassificationConfig(), num_classes=2)
    telemetry = Telemetry(task, Duration.parse("4st"), schedule.clock)
    telemetry.open((SimpleNamespace(write=lines.append),), samples=begin)  # type: ignore[arg-type]
    for number, step in enumerate(schedule.plan.steps(begin), begin // 100 + 1):
        now += 0.5
        if telemetry.due(step, number):
            telemetry.train(step, number, [1.0, 1.0, 100.0], {}, now)
        if number % 3 == 0:
            telemetry.pause()
            now += 7.0
            telemetry.evaluation({"split": "also", "samples": step.end})
    telemetry.flush()
    rates = [line["samples_per_second"] for line in lines if line["split"] == "train"]
    assert rates == pytest.approx([200.0] * len(rates)) and len(rates) >= 6
    assert telemetry.train_samples / telemetry.train_seconds == pytest.approx(200.0)


def test_samples_per_joule_count_a_shared_gpu_once(tmp_path: Path) -> None:
    class Writer(list[Any]):
        write = list.append

    def watched(*powers: tuple[str, float]) -> list[dict[str, Any]]:
        heartbeat = Heartbeat(World(0, len(powers)))
        heartbeat.beats = lambda: {  # type: ignore[method-assign]
            rank: {"host": "h", "hardware": {"gpu": gpu, "gpu_power_watts": watts}}
            if watts
            else {"host": "h", "hardware": {"gpu": gpu}}
            for rank, (gpu, watts) in enumerate(powers)
        }
        batch = BatchConfig(size=100)
        length = ScheduleConfig(length=Duration.parse("3st"))
        schedule = Schedule(length, batch, 0.1, "none", 300, 1, None)
        lines = Writer()
        task = Classification(ClassificationConfig(), num_classes=2)
        telemetry = Telemetry(task, Duration.parse("1st"), schedule.clock)
        telemetry.open((lines,))
        times = StepTimes(torch.device("cpu"))
        hardware = HardwareLines(torch.device("cpu"), times, heartbeat, telemetry, 1e-9)
        for number, step in enumerate(schedule.plan.steps(0), 1):
            telemetry.train(step, number, [1.0, 1.0, 100.0], {}, telemetry._last_time + 0.5)
            hardware.measure(SimpleNamespace(step=step, number=number))
        return [line for line in lines if line["split"] == "train"]

    first, second, _ = watched(("a", 300.0), ("b", 100.0))
    assert "samples_per_joule" not in first  # no reading yet
    assert second["samples_per_joule"] == pytest.approx(100 / 0.5 / 400)
    assert watched(("a", 300.0), ("a", 300.0))[1]["samples_per_joule"] == pytest.approx(200 / 300)
    assert "samples_per_joule" not in watched(("a", 300.0), ("b", 0.0))[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("different", "said"),
    [
        ("--optim.lr=0.3", "optim.lr=0.3 on rank 1 ({host}) but 0.1 on rank 0 ({host})"),
        ("--data.root={other}", "the number of training samples=39 on rank 1 ({host}) but 40 on"),
    ],
)
def test_ranks_that_differ_are_refused_by_name(tmp_path: Path, different: str, said: str) -> None:
    for name, count in (("one", 40), ("other", 39)):
        generator = np.random.default_rng(0)
        images = generator.integers(0, 256, (50, 8, 8), dtype=np.uint8)
        labels = np.arange(50) % 4
        np.savez(tmp_path / f"{name}.npz", x_train=images[:count], y_train=labels[:count],
                 x_test=images[40:], y_test=labels[40:])  # fmt: skip
    ranks = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    different = different.format(other=tmp_path / "other.npz")
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "largebatch", "train", f"--run.dir={tmp_path / 'run'}",
             "--data.name=arrays", f"--data.root={tmp_path / 'one.npz'}",
             *([different] if rank else [])],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, **ranks, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=500)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [2, 2], outputs
    host = socket.gethostname()
    assert outputs[0].startswith(f"largebatch: {said.format(host=host)}")
    assert outputs[0].count("\n") == 1
    assert outputs[1] == ""
