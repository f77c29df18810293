"""Final accuracy of runs that lost a host and took in another, against runs that nothing disturbed.

    python benchmarks/elastic.py --runs RUNS --json benchmarks/results/elastic.json

F1 on the digits in float32. A host is a torchrun agent of one rank, started by
launch/torchrun_elastic.sh. Three start; under way one is killed with its rank, the two that are
left go on, and another joins them: on a fast machine --steps leaves time for its start. The
undisturbed run is one process with the same config.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import socket
import time
from itertools import groupby
from pathlib import Path
from typing import Any

import psutil
from failures import Job

from largebatch.processes.environment import free_port
from largebatch.record import BenchmarkRecord, write_record
from largebatch.study import GridStudy, carry_out
from largebatch.study.grid import spread

FORMULA = (
    "top-1 = right answers / 355 held-out digits after the last epoch, in %, mean and standard "
    "deviation over seeds"
)
TRAIN = [
    *("--model.name=f1", "--norm.kind=ghost", "--norm.ghost_size=32", "--batch.size=192"),
    *("--data.limit=1344", "--checkpoint.every=20st", "--telemetry.hardware_every=0"),
    *("--distributed.heartbeat=8", "--distributed.timeout=120"),
]
LAUNCH = Path(__file__).resolve().parents[1] / "launch" / "torchrun_elastic.sh"
STARTED = re.compile(r"(\d) rank\(s\) on cpu")


def listens(endpoint: str) -> bool:
    """Return whether somebody takes connections there."""
    host, port = endpoint.split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


class Hosts(Job):
    """Three agents that share one run, and one log."""

    def __init__(self, run: Path, *options: str) -> None:
        self.run, self.log = run, run.with_suffix(".log")
        self.command = [str(LAUNCH), f"--run.dir={run}", *TRAIN, *options]
        self.changes = {
            "LEAST": "2",
            "MOST": "4",
            "NPROC": "1",
            "RUN": "elastic",
            "LAST_CALL": "5",
            "ENDPOINT": f"127.0.0.1:{free_port()}",
        }
        self.processes = []
        self.add()  # it keeps the rendezvous, and stays
        while not listens(self.changes["ENDPOINT"]):
            time.sleep(0.1)
        self.add()
        self.add()

    def lose(self) -> None:
        """Kill the last agent and its rank at once."""
        lost = psutil.Process(self.processes.pop().pid)
        for process in (*lost.children(recursive=True), lost):
            process.kill()

    def add(self) -> None:
        self.processes.append(self._start(self.command, self.changes))

    def sizes(self) -> list[int]:
        """Return the numbers of ranks so far, each as often as it changed."""
        return [int(size) for size, _ in groupby(STARTED.findall(self.output()))]


def disturbed(run: Path, *options: str) -> float:
    """Train with a host lost and one that joins; return the last evaluation's top-1 in %."""
    hosts = Hosts(run, *options)
    try:
        hosts.until(60)
        hosts.lose()
        hosts.until(hosts.steps() + 30)
        hosts.add()
        code = hosts.end(900)
        if code != 0 or hosts.sizes()[-3:] != [3, 2, 3]:
            raise SystemExit(f"ranks {hosts.sizes()}, exit code {code}:\n{hosts.output()}")
    finally:
        hosts.kill()
    return 100 * float(json.loads((run / "summary.json").read_text(encoding="utf-8"))["top1"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True, help="where the runs go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=600, help="of every run")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    length = f"--schedule.length={options.steps}st"
    plain = GridStudy({"undisturbed": [*TRAIN, length]}, options.seeds, (), "top1", True, "run")
    rows: list[dict[str, Any]] = carry_out(plain, options.runs).rows
    values = []
    for seed in options.seeds:
        run = options.runs / f"disturbed-{seed}"
        shutil.rmtree(run, ignore_errors=True)
        run.with_suffix(".log").unlink(missing_ok=True)
        values.append(disturbed(run, f"--run.seed={seed}", length))
    rows.append({"run": "a host lost, another joined", **spread(values, "top1")})
    ranks = "3 ranks, then 2, then 3, gloo on one host"
    notes = [f"{ranks}; {options.steps} steps of 192, a checkpoint every 20"]
    record = BenchmarkRecord("elastic", FORMULA, rows, notes=notes)
    write_record(options.json, record)
    print(record.table())


if __name__ == "__main__":
    main()
