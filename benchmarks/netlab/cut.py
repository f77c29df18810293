"""Cut a host off while bytes are in flight: every surviving rank must say so within the timeout.

    sudo python benchmarks/netlab/cut.py --json benchmarks/results/netlab_cut.json

Ranks reduce without pause; at a random time a host's link goes down. A surviving rank passes if its
all-reduce raises within the timeout and the grace below, naming its rank and the step.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from lab import Lab

from largebatch.record import BenchmarkRecord, write_record

WORKER = Path(__file__).parent / "worker.py"
NAMED = re.compile(r"torus all-reduce: rank (\d+) in step '[a-z ]+' with rank \d+, chunk \d+ of")
GRACE = 5.0  # seconds: processes wake up late where many share two cores


def wait_for(paths: list[Path], seconds: float) -> bool:
    """Wait until all of ``paths`` exist; return whether they do."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if all(path.exists() for path in paths):
            return True
        time.sleep(0.05)
    return False


def cut(delay: float, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Cut the last host off ``delay`` seconds after all ranks are ready; return a row a rank."""
    with tempfile.TemporaryDirectory() as folder, Lab(options.hosts, options.rate) as lab:
        arguments = ["until-failure", f"--json={folder}", "--kinds=torus"]
        arguments += [f"--timeout={options.timeout}", f"--sizes={options.size}"]
        processes = lab.torchrun(options.ranks, WORKER, arguments)
        count = options.hosts * options.ranks
        if not wait_for([Path(folder, f"ready-{rank}") for rank in range(count)], 300):
            for process in processes:
                process.kill()
            raise RuntimeError("netlab: the ranks did not start:\n" + processes[0].communicate()[0])
        time.sleep(delay)
        lab.cut(options.hosts - 1)
        moment = time.time()
        survivors = range(count - options.ranks)
        files = [Path(folder, f"failed-{rank}") for rank in survivors]
        wait_for(files, options.timeout + 2 * GRACE)
        rows = []
        for rank, file in zip(survivors, files, strict=True):
            row: dict[str, Any] = {"delay_s": round(delay, 3), "rank": rank, "passed": False}
            if file.exists():
                time.sleep(0.1)  # it may be half written
                found = json.loads(file.read_text())
                row["seconds"] = round(found["end"] - moment, 2)
                row["error"] = found["error"].splitlines()[0]
                named = NAMED.search(row["error"])
                row["passed"] = (
                    named is not None
                    and int(named[1]) == rank
                    and row["seconds"] < options.timeout + GRACE
                )
            rows.append(row)
        return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rate", type=float, default=200.0, help="Mbit/s")
    parser.add_argument("--size", type=float, default=16.8, help="MB")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds of a step")
    parser.add_argument("--times", type=int, default=5, help="how often")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    rows = []
    for _ in range(options.times):
        rows += cut(draw.uniform(0.1, 3.0), options)
        for row in rows[-(options.hosts - 1) * options.ranks :]:
            print(row, flush=True)
    if options.json:
        formula = (
            f"seconds from the cut to the error on a surviving rank; the timeout of a step is"
            f" {options.timeout:g} s"
        )
        write_record(options.json, BenchmarkRecord("netlab_cut", formula, rows))
    return 0 if all(row["passed"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
