"""Stopping and going on: the same command continues, and nobody can tell afterwards."""

from __future__ import annotations

import signal
import time
from typing import Any

import psutil
import pytest

# 330 samples are steps of 128, 128 and 74; 60 steps are 20 epochs.
RUN = [
    "--data.limit=330",
    "--batch.size=128",
    "--norm.kind=ghost",
    "--norm.ghost_size=16",
    "--model.drop=0.1",
    "--ema.half_life=1ep",
    "--optim.lr=0.05",
    "--optim.clip_norm=2",
    "--schedule.length=60st",
    "--checkpoint.every=7st",
]


@pytest.mark.parametrize(
    ("nproc", "whom"),
    [
        (1, "launcher"),
        pytest.param(2, "one rank", marks=pytest.mark.slow),
        pytest.param(3, "one rank", marks=[pytest.mark.slow, pytest.mark.long]),
        pytest.param(4, "launcher", marks=[pytest.mark.slow, pytest.mark.long]),
    ],
)
def test_a_signal_saves_and_the_same_command_ends_bit_identical(train, begin, nproc, whom):
    undisturbed = train("undisturbed", *RUN, nproc=nproc)
    run = begin("stopped", *RUN, nproc=nproc)
    run.wait_for(lambda: run.steps() >= 16, "step 16")
    target = run.ranks()[-1] if whom == "one rank" else psutil.Process(run.process.pid)
    asked = time.monotonic()
    target.send_signal(signal.SIGTERM)
    output = run.end()
    assert time.monotonic() - asked < 20
    assert run.process.returncode == 0, output
    assert "the same command" in output and str(run.directory) in output
    assert not (run.directory / "summary.json").exists()
    stopped_at = run.steps()
    assert 16 <= stopped_at < 60
    finished = train("stopped", *RUN, nproc=nproc)
    assert f"continuing at {samples(stopped_at):,}" in finished.output
    assert finished.summary["weights_sha256"] == undisturbed.summary["weights_sha256"]
    assert timeless(undisturbed.metrics) == timeless(finished.metrics)
    again = train("stopped", *RUN, nproc=nproc)
    assert "finished" in again.output
    assert again.summary == finished.summary


def timeless(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what a run's lines say apart from how long it took."""
    return [
        {key: value for key, value in line.items() if not key.endswith(("_second", "_seconds"))}
        for line in lines
        if line["split"] != "hardware"
    ]


def samples(step: int) -> int:
    return step // 3 * 330 + step % 3 * 128


@pytest.mark.parametrize(("before", "after"), [pytest.param(2, 1, marks=pytest.mark.long), (3, 2)])
@pytest.mark.slow
def test_another_world_size_sees_the_same_samples(train, begin, before, after):
    double = [*RUN, "--precision.compute=fp64", "--model.drop=0"]
    undisturbed = train("undisturbed", *double, nproc=after)
    run = begin("stopped", *double, nproc=before)
    run.wait_for(lambda: run.steps() >= 10, "step 10")
    run.process.send_signal(signal.SIGTERM)
    run.end()
    finished = train("stopped", *double, nproc=after)
    hashes = [[line["order_hash"] for line in r.lines("train")] for r in (undisturbed, finished)]
    assert hashes[0] == hashes[1]
    for name, tensor in undisturbed.weights.items():
        if tensor.is_floating_point():
            gap = (finished.weights[name] - tensor).norm() / tensor.norm().clamp_min(1e-300)
            assert float(gap) < 1e-9, name


@pytest.mark.slow
def test_a_killed_launcher_takes_its_ranks_along_and_the_run_goes_on(train, begin):
    undisturbed = train("undisturbed", *RUN, nproc=2)
    run = begin("killed", *RUN, nproc=2)
    run.wait_for(lambda: run.steps() >= 20, "step 20")
    ranks = run.ranks()
    assert len(ranks) == 2
    run.process.kill()
    _, alive = psutil.wait_procs(ranks, timeout=10)
    assert not alive
    finished = train("killed", *RUN, nproc=2)
    assert "continuing at" in finished.output
    assert finished.summary["weights_sha256"] == undisturbed.summary["weights_sha256"]


@pytest.mark.slow
def test_a_directory_in_use_is_refused_and_its_owner_named(begin, train):
    run = begin("shared", *RUN, "--schedule.length=100000st")
    run.wait_for(lambda: run.steps() >= 1, "a step")
    psutil.Process(run.process.pid).suspend()  # it keeps its lock, and leaves other tests the core
    begun = time.monotonic()
    refused = train("shared", *RUN, "--schedule.length=100000st", code=2)
    assert 29 < time.monotonic() - begun < 90
    assert str(run.process.pid) in refused.output
    assert refused.output.strip().count("\n") == 0


def test_a_config_that_differs_is_refused_by_key(train):
    train("run", *RUN, "--schedule.length=3st")
    different = train("run", *RUN, "--schedule.length=3st", "--optim.lr=0.06", code=2)
    assert "optim.lr=0.06" in different.output and "0.05" in different.output
    never = train("run", *RUN, "--schedule.length=3st", "--checkpoint.resume=never", code=2)
    assert "checkpoint.resume=never" in never.output
    free = train("run", *RUN, "--schedule.length=3st", "--telemetry.every=2st")
    assert "finished" in free.output
