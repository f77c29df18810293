"""Does `study decision` foretell runs? Hours to a target at batches that its study has not run.

    python benchmarks/decision_foretold.py --folder RUNS --json FILE

The digits: runs to a target at six batches, step times by `bench scaling` on one and two ranks, the
decision, then new runs at two points between. Wants an idle machine. The same command goes on.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from statistics import fmean, median
from typing import Any

from largebatch.cli import main
from largebatch.record import BenchmarkRecord, RunDirectory, read_metrics, read_record, write_record
from largebatch.study.steps_to_target import figures

FORMULA = """\
hours = steps to the target x seconds of a step / 3600, without evaluations, checkpoints and the
  start of a process (100 to 200 ms here)
foretold: by the line of samples needed and the line of seconds, with the 90% interval of one run
measured: each new run's steps x the mean seconds of those that it writes down, every fourth"""
TARGET = "{loss: 0.05}"
BASE = ["--recipe=digits", "--evaluate.every=0.25ep"]
STUDY = ["--batches=[16,32,64,128,256,512]", "--seeds=5", f"--target={TARGET}"]
SCALING = ["--ranks", "1", "2", "--batches", "16", "32", "64", "128", "256"]
SCALING += ["--seconds", "0.5", "--rounds", "5"]
POINTS = [(48, 1), (192, 2)]  # batch and ranks
SEEDS = (11, 12, 13, 14, 15)  # none of the study's
PHASES = ("data_seconds", "compute_seconds", "communication_seconds", "optimizer_seconds")


def measured(folder: Path, batch: int, ranks: int, rate: float, seed: int) -> float | None:
    """Train to the target; return the hours of its steps, None if it never came there."""
    run = RunDirectory(folder / f"{batch}-on-{ranks}-seed-{seed}")
    options = [*BASE, f"--run.dir={run.path}", f"--run.nproc={ranks}", f"--run.seed={seed}"]
    options += [f"--batch.size={batch}", f"--optim.lr={rate}", f"--run.target={TARGET}"]
    subprocess.run([sys.executable, "-m", "largebatch", "train", *options], check=True)
    summary = run.read_summary() or {}
    if not summary.get("target"):
        return None
    lines = [line for line in read_metrics(run.metrics) if line["split"] == "train"]
    seconds = fmean(sum(float(line[phase]) for phase in PHASES) for line in lines)
    return float(summary["steps"]) * seconds / 3600


def foretold(folder: Path) -> dict[tuple[int, int], dict[str, Any]]:
    """Carry out the studies; return the decision's choice by batch and ranks."""
    steps, scaling, decided = (folder / f"{name}.json" for name in ("steps", "scaling", "decided"))
    study = ["study", "steps-to-target", "--folder", str(folder / "study"), *BASE, *STUDY]
    batches = ",".join(str(batch) for batch, _ in POINTS)
    decision = ["study", "decision", "--from", str(steps), "--scaling", str(scaling)]
    decision += ["--gpus=[1,2]", f"--batches=[{batches}]", "--folder", str(folder / "decision")]
    for arguments, file in (
        (study, steps),
        (["bench", "scaling", "--recipe", "digits", *SCALING], scaling),
        (decision, decided),
    ):
        if not file.exists() and main([*arguments, "--json", str(file)]):
            raise SystemExit(2)
    choices = read_record(decided).details["choices"]
    return {(each["batch"], each["ranks"]): each for each in choices}


def run(folder: Path) -> BenchmarkRecord:
    """Return a row a point."""
    choices, rows = foretold(folder), []
    for batch, ranks in POINTS:
        choice = choices[batch, ranks]
        low, high = choice["both"]
        rate = choice["learning_rate"]
        hours = [measured(folder, batch, ranks, rate, seed) for seed in SEEDS]
        came = [each for each in hours if each is not None]
        rows.append(
            {
                "batch": batch,
                "ranks": ranks,
                "learning rate": figures(rate),
                "foretold ms": round(3.6e6 * choice["hours"], 1),
                "low": round(3.6e6 * low, 1),
                "high": round(3.6e6 * high, 1),
                "median": round(3.6e6 * median(came), 1) if came else None,
                "measured": [None if each is None else round(3.6e6 * each, 1) for each in hours],
                "within": f"{sum(low <= each <= high for each in came)} of {len(hours)}",
            }
        )
    notes = [
        "milliseconds of steps, for hours this small; the target is a held-out loss of 0.05",
        *read_record(folder / "decided.json").notes,
    ]
    return BenchmarkRecord("decision-foretold", FORMULA, rows, notes=notes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    record = run(options.folder)
    print(record.table())
    if options.json is not None:
        write_record(options.json, record)
