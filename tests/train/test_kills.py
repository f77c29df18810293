"""Kill -9 at random moments, each followed by the same command (minutes: slow).

Three among three ranks; with LARGEBATCH_LONG_TESTS set thirty, among two and three.
"""

from __future__ import annotations

import os
import random
import time
from contextlib import suppress

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
STEPS, THIRDS = 120, 3
KILLS = {"launcher": 1, "write": 2}
if "LARGEBATCH_LONG_TESTS" in os.environ:
    KILLS = {"launcher": 5, "rank": 4, "all": 3, "write": 3}


def kill_rank(run, rng):
    rng.choice(run.ranks()).kill()


def kill_launcher(run, rng):
    ranks = run.ranks()
    run.process.kill()
    _, alive = psutil.wait_procs(ranks, timeout=10)
    assert not alive, "a rank outlived its launcher by more than 10 s"


def writing(run, begun):
    """Whether a checkpoint begun since then is half written."""
    for path in (run.directory / "checkpoints").glob(".partial-*"):
        with suppress(FileNotFoundError):  # it was whole meanwhile
            if path.stat().st_ctime >= begun:
                return True
    return False


def kill_all(run, rng):
    for process in [psutil.Process(run.process.pid), *run.ranks()]:
        process.kill()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("nproc", [pytest.param(2, marks=pytest.mark.long), 3])
def test_killed_runs_end_as_undisturbed_ones(train, begin, nproc):
    rng = random.Random(nproc)
    expected = train("undisturbed", *RUN, nproc=nproc).summary["weights_sha256"]
    plans = [plan for plan, times in KILLS.items() for _ in range(times)]
    rng.shuffle(plans)
    rows = []
    for chain in range(0, len(plans), THIRDS):  # a run each: killed in every third of its steps
        name = f"run-{chain}"
        for third, plan in enumerate(plans[chain : chain + THIRDS]):
            begun = time.time()
            run = begin(name, *RUN, nproc=nproc)
            low, length = third * STEPS // THIRDS, STEPS // THIRDS
            at = rng.randrange(low + 1, low + length - 10)
            run.wait_for(lambda run=run, at=at: run.steps() >= at, f"step {at}")
            if plan == "write":
                run.wait_for(lambda run=run, b=begun: writing(run, b), "a checkpoint write")
                run.ranks()[0].kill()
            else:
                {"launcher": kill_launcher, "rank": kill_rank, "all": kill_all}[plan](run, rng)
            run.end()
            assert not (run.directory / "summary.json").exists(), "it had finished: kill earlier"
            rows.append((plan, run.steps(), writing(run, begun)))
            print(
                "kill {:<8} ranks {} step {:>3} inside a write {}".format(
                    plan, nproc, *rows[-1][1:]
                )
            )
        resumed = train(name, *RUN, nproc=nproc)
        assert resumed.summary["weights_sha256"] == expected, rows
    landed = sum(1 <= step < STEPS for _, step, _ in rows)
    inside = sum(half_written for _, _, half_written in rows)
    print(f"{landed} of {len(rows)} between the first and the last step, {inside} inside a write")
    assert landed >= 0.8 * len(rows)
    assert inside >= max(1, len(rows) // 5)
