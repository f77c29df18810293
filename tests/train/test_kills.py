"""Thirty kill -9s at random moments, each followed by the same command (minutes: slow)."""

from __future__ import annotations

import random

import psutil
import pytest

RUN = [
    "--model.name=f1",
    "--data.image_size=28",
    "--data.limit=700",
    "--batch.size=96",
    "--norm.kind=ghost",
    "--norm.ghost_size=16",
    "--optim.lr=0.02",
    "--schedule.length=120st",
    "--checkpoint.every=9st",
]
STEPS = 120


def kill_rank(run, rng):
    rng.choice(run.ranks()).kill()


def kill_launcher(run, rng):
    ranks = run.ranks()
    run.process.kill()
    _, alive = psutil.wait_procs(ranks, timeout=10)
    assert not alive, "a rank outlived its launcher by more than 10 s"


def kill_all(run, rng):
    for process in [psutil.Process(run.process.pid), *run.ranks()]:
        process.kill()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("nproc", [2, 3])
def test_killed_runs_end_as_undisturbed_ones(train, begin, nproc):
    rng = random.Random(nproc)
    expected = train("undisturbed", *RUN, nproc=nproc).summary["weights_sha256"]
    plans = ["launcher"] * 5 + ["rank"] * 4 + ["all"] * 3 + ["write"] * 3
    inside, rows = 0, []
    for number, plan in enumerate(plans):
        run = begin(f"{plan}-{number}", *RUN, nproc=nproc)
        at = rng.randrange(1, STEPS - 10)
        run.wait_for(lambda run=run, at=at: run.steps() >= at, f"step {at}")
        if plan == "write":
            checkpoints = run.directory / "checkpoints"
            run.wait_for(lambda c=checkpoints: any(c.glob(".partial-*")), "a checkpoint write")
            run.ranks()[0].kill()
        else:
            {"launcher": kill_launcher, "rank": kill_rank, "all": kill_all}[plan](run, rng)
        run.end()
        half_written = any((run.directory / "checkpoints").glob(".partial-*"))
        inside += half_written
        killed_at = run.steps()
        assert not (run.directory / "summary.json").exists(), "it had finished: kill earlier"
        resumed = train(f"{plan}-{number}", *RUN, nproc=nproc)
        rows.append((plan, nproc, killed_at, half_written))
        print(f"kill {plan:<8} ranks {nproc} step {killed_at:>3} inside a write {half_written}")
        assert resumed.summary["weights_sha256"] == expected, rows
    landed = sum(1 <= step < STEPS for _, _, step, _ in rows)
    print(f"{landed} of {len(rows)} between the first and the last step, {inside} inside a write")
    assert landed >= 12
    assert inside >= 3
