"""Fixed classifiers against a learned one: F1 on MNIST (Hoffer et al. 2018, Fix your classifier).

    python benchmarks/fixed_classifier_mnist.py --data DATA --runs RUNS --json benchmarks/results/FILE.json

DATA holds MNIST/raw. Every classifier is trained with every seed by the recipe hoffer-f1-mnist-small
(batch 128), its milestones at a fifth, two and three fifths of `--epochs`, as a `largebatch train`
of its own under RUNS, `--jobs` of them at a time; what is finished there is only read.
"""  # noqa: E501

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from largebatch.record import BenchmarkRecord, write_record

CLASSIFIERS = ("learned", "hadamard", "orthonormal")
FORMULA = (
    "top-1 = right answers / 10,000 test images after the last epoch, in %, mean and standard "
    "deviation over seeds; against learned = mean top-1 - mean top-1 of the learned classifier; "
    "train loss = cross-entropy of the last step's 128 images, mean over seeds"
)


def train(classifier: str, seed: int, data: str, runs: Path, epochs: int) -> dict[str, Any]:
    """Train with one classifier and one seed, unless that is done already; return its results."""
    directory = runs / f"{classifier}-{seed}"
    if not (directory / "summary.json").exists():
        milestones = ", ".join(f"{epochs * part / 5:g}ep" for part in (1, 2, 3))
        subprocess.run(
            [
                *(sys.executable, "-m", "largebatch", "train", "--recipe=hoffer-f1-mnist-small"),
                *(f"--model.classifier={classifier}", f"--run.seed={seed}"),
                *(f"--data.root={data}", f"--run.dir={directory}"),
                *(f"--schedule.length={epochs}ep", f"--schedule.milestones=[{milestones}]"),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [line for line in map(json.loads, lines) if line["split"] == "train"]
    return {
        "classifier": classifier,
        "seed": seed,
        "top1": round(100 * float(summary["top1"]), 2),
        "val_loss": round(float(summary["loss"]), 5),
        "train_loss": round(float(steps[-1]["loss"]), 6),
        "epochs": summary["epochs"],
    }


def row(runs: list[dict[str, Any]], learned: float) -> dict[str, Any]:
    """Return one line of the table, with every run."""
    top1 = [run["top1"] for run in runs]
    return {
        "classifier": runs[0]["classifier"],
        "seeds": len(runs),
        "top1": round(mean(top1), 2),
        "sd": round(stdev(top1), 2) if len(top1) > 1 else None,
        "against learned": round(mean(top1) - learned, 2),
        "train loss": round(mean(run["train_loss"] for run in runs), 6),
        "runs": runs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder that holds MNIST/raw")
    parser.add_argument("--runs", type=Path, required=True, help="where the runs go or stand")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    jobs = [(classifier, seed) for classifier in CLASSIFIERS for seed in options.seeds]
    with ThreadPoolExecutor(options.jobs) as pool:
        found = list(
            pool.map(lambda j: train(*j, options.data, options.runs, options.epochs), jobs)
        )
    by = {name: [run for run in found if run["classifier"] == name] for name in CLASSIFIERS}
    learned = mean(run["top1"] for run in by["learned"])
    notes = [
        f"{options.epochs} epochs, batch 128, fp32, SGD momentum 0.9, weight decay 1e-4, clip 5.0, "
        "rate 0.1 divided by 10 at a fifth, two and three fifths",
        "one rate for all, tuned for the learned classifier",
    ]
    rows = [row(runs, learned) for runs in by.values()]
    record = BenchmarkRecord("fixed-classifier-mnist", FORMULA, rows, notes=notes)
    write_record(options.json, record)
    print(BenchmarkRecord(record.name, FORMULA, [{k: v for k, v in r.items() if k != "runs"}
                                                 for r in rows], notes=notes).table())  # fmt: skip


if __name__ == "__main__":
    main()
