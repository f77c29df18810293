"""The generalisation gap of F1 on MNIST and what closes it (Hoffer et al. 2017, table 1).

    python benchmarks/hoffer_f1_mnist.py --data DATA --runs RUNS --json benchmarks/results/FILE.json

DATA holds MNIST/raw. Every recipe runs with every seed as a `largebatch train` of its own under
RUNS, `--jobs` of them at a time; what is finished there is only read, so the script can be stopped
and started again. Regime adaptation runs a fifth of the lecture's regime (1,600 epochs) unless
`--whole-regime` is given: 10 epochs stretched by 4096 / 128, milestones in proportion.
"""

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

RECIPES = ("small", "large", "sqrt", "ghost", "regime")
A_FIFTH = ["--schedule.length=10ep", "--schedule.milestones=[2ep, 4ep, 6ep]"]
LECTURE = {"small": 98.27, "large": 97.05, "sqrt": 97.55, "ghost": 97.60, "regime": 98.53}
FORMULA = (
    "top-1 = right answers / 10,000 test images after the last epoch, in %, mean and standard "
    "deviation over seeds; gap = mean top-1 of the small batch - mean top-1"
)


def train(recipe: str, seed: int, data: str, runs: Path, whole_regime: bool) -> float:
    """Run one recipe with one seed, unless it is finished already; return its top-1 in %."""
    directory = runs / f"{recipe}-{seed}"
    if not (directory / "summary.json").exists():
        extra = A_FIFTH if recipe == "regime" and not whole_regime else []
        subprocess.run(
            [
                *(sys.executable, "-m", "largebatch", "train"),
                f"--recipe=hoffer-f1-mnist-{recipe}",
                *(f"--data.root={data}", f"--run.seed={seed}", f"--run.dir={directory}"),
                *extra,
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    return 100 * float(summary["top1"])


def row(recipe: str, top1: list[float], small: float) -> dict[str, Any]:
    """Return one line of the table."""
    return {
        "recipe": f"hoffer-f1-mnist-{recipe}",
        "seeds": len(top1),
        "top1": round(mean(top1), 2),
        "sd": round(stdev(top1), 2) if len(top1) > 1 else None,
        "gap": round(small - mean(top1), 2),
        "all": [round(value, 2) for value in top1],
        "lecture": LECTURE[recipe],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder that holds MNIST/raw")
    parser.add_argument("--runs", type=Path, required=True, help="where the runs go or stand")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=RECIPES)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--whole-regime", action="store_true")
    parser.add_argument("--finished-only", action="store_true", help="read, start nothing")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    jobs = [(recipe, seed) for recipe in options.recipes for seed in options.seeds]
    if options.finished_only:
        jobs = [j for j in jobs if (options.runs / f"{j[0]}-{j[1]}" / "summary.json").exists()]
    with ThreadPoolExecutor(options.jobs) as pool:
        values = list(
            pool.map(lambda j: train(*j, options.data, options.runs, options.whole_regime), jobs)
        )
    found: dict[str, list[float]] = {}
    for (recipe, _), value in zip(jobs, values, strict=True):
        found.setdefault(recipe, []).append(value)
    rows = [row(recipe, top1, mean(found["small"])) for recipe, top1 in found.items()]
    regime = "1,600 epochs" if options.whole_regime else "320 epochs, a fifth of the regime"
    notes = [
        "50 epochs (regime: " + regime + "), fp32, SGD momentum 0.9, weight decay 1e-4, clip 5.0",
        "lecture: the table of Hoffer et al. 2017, their own hyperparameters and code",
    ]
    record = BenchmarkRecord("hoffer-f1-mnist", FORMULA, rows, notes=notes)
    write_record(options.json, record)
    print(record.table())


if __name__ == "__main__":
    main()
