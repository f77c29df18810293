"""Many short training runs, each a `largebatch train` of its own, finished ones only read.

A run stands in a folder of its own under RUNS; what is finished there is not run again, so that a
benchmark can be stopped and started again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any


def arguments(description: str) -> argparse.ArgumentParser:
    """Return a parser of what every such benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", required=True, help="data.root of the runs")
    parser.add_argument("--runs", type=Path, required=True, help="where the runs go or stand")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--json", type=Path, required=True)
    return parser


def top1(directory: Path, settings: Sequence[str]) -> float:
    """Train with ``settings`` unless it is done; return the last evaluation's top-1 in %."""
    summary = directory / "summary.json"
    if not summary.exists():
        subprocess.run(
            [sys.executable, "-m", "largebatch", "train", *settings, f"--run.dir={directory}"],
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    return 100 * float(json.loads(summary.read_text(encoding="utf-8"))["top1"])


def all_top1(jobs: Sequence[tuple[Path, Sequence[str]]], at_a_time: int) -> list[float]:
    """Return the top-1 of every (directory, settings), in their order."""
    with ThreadPoolExecutor(at_a_time) as pool:
        return list(pool.map(lambda job: top1(*job), jobs))


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, standard deviation and every value of one contender's seeds."""
    return {
        "seeds": len(values),
        "top1": round(mean(values), 2),
        "sd": round(stdev(values), 2) if len(values) > 1 else None,
        "all": [round(value, 2) for value in values],
    }
