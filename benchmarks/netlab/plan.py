"""The step simulator against training steps in the lab: ResNet-18 on hosts of one machine.

    sudo python benchmarks/netlab/plan.py --json benchmarks/results/plan_lab.json

A prediction stands on the probe, run in the lab before the steps as it is at the start of any
program, and on compute measured without any exchange, on one host, with as many ranks, at two other
batches (``CALIBRATION``), between which every moment of a step is taken to be linear. Hosts share
the machine's cores, so an all-reduce takes from the backward pass the share of them that it keeps
busy alone. Nothing is fitted to the steps that are predicted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from lab import Lab

from largebatch.distributed.cost_model import CostModel
from largebatch.distributed.grid import Grid
from largebatch.distributed.probe import Timing
from largebatch.distributed.selection import Selection
from largebatch.distributed.topology import Topology
from largebatch.record import BenchmarkRecord, write_record
from largebatch.simulate import Compute, Contention, simulate

RANK = Path(__file__).with_name("training.py")
CALIBRATION = (6, 48)  # samples a rank; no setting below has either
BUCKET_MB = 4.0
FORMULA = (
    "error = predicted / measured - 1, of the median step's seconds, the slowest rank's; "
    "goals: median of |error| under 8%, worst under 15%"
)


@dataclass(frozen=True)
class Setting:
    """One line of the table: hosts, ranks of each, Mbit/s of a host's link, samples a rank."""

    hosts: int
    ranks: int
    rate: int
    batch: int
    allreduce: str
    wire: str = "fp32"


SETTINGS = (
    Setting(2, 2, 200, 16, "flat"),
    Setting(2, 2, 500, 40, "torus"),
    Setting(2, 2, 100, 32, "torus", "bf16"),
    Setting(2, 3, 300, 24, "flat"),
    Setting(3, 2, 200, 32, "torus"),
    Setting(3, 2, 600, 8, "flat"),
    Setting(2, 4, 200, 16, "torus"),
    Setting(2, 4, 400, 32, "flat"),
    Setting(4, 2, 300, 24, "torus"),
    Setting(4, 2, 200, 12, "torus", "bf16"),
)


def on_one_host(ranks: int, steps: int) -> dict[int, dict[str, Any]]:
    """Return the moments of steps that exchange nothing, at the batches of the calibration."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={ranks}", str(RANK), "--allreduce=none"]
        command += [f"--json={result}", f"--steps={steps}", f"--bucket-mb={BUCKET_MB}"]
        command += ["--batches", *map(str, CALIBRATION)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        batches = json.loads(result.read_text())["batches"]
    return {int(batch): moments for batch, moments in batches.items()}


def in_the_lab(setting: Setting, steps: int, timeout: float) -> dict[str, Any]:
    """Return what the probe found in a lab of ``setting``, and then the moments of its steps."""
    with tempfile.TemporaryDirectory() as folder, Lab(setting.hosts, setting.rate) as lab:
        result = Path(folder, "result.json")
        arguments = [f"--allreduce={setting.allreduce}", f"--wire={setting.wire}"]
        arguments += [f"--json={result}", f"--steps={steps}", f"--bucket-mb={BUCKET_MB}"]
        processes = lab.torchrun(setting.ranks, RANK, [*arguments, f"--batches={setting.batch}"])
        outputs = [process.communicate(timeout=timeout)[0] for process in processes]
        if not result.exists():
            raise RuntimeError("netlab: the ranks failed:\n" + "\n".join(outputs))
        return dict(json.loads(result.read_text()))


def compute(moments: dict[int, dict[str, Any]], batch: int) -> Compute:
    """Return a rank's work on ``batch`` samples, linear between the calibration's batches."""
    low, high = (moments[size] for size in CALIBRATION)
    share = (batch - CALIBRATION[0]) / (CALIBRATION[1] - CALIBRATION[0])

    def between(one: float, other: float) -> float:
        return one + share * (other - one)

    forward = between(low["forward"], high["forward"])
    backward = between(low["backward"], high["backward"]) - forward
    optimizer = between(low["step"] - low["finish"], high["step"] - high["finish"])
    gradients = tuple(
        (min(max(between(*ready) - forward, 0.0), backward), size)
        for *ready, size in zip(low["ready"], high["ready"], low["bytes"], strict=True)
    )
    return Compute(forward, backward, optimizer, gradients)


def predict(setting: Setting, moments: dict[int, dict[str, Any]], found: dict[str, Any]) -> Any:
    """Simulate a step from the calibration and the probe alone."""
    topology = Topology.from_hosts([h for h in range(setting.hosts) for _ in range(setting.ranks)])
    selection = Selection(
        "auto",
        topology,
        setting.wire,  # type: ignore[arg-type]
        CostModel.from_mapping(found["model"]),
        tuple(Timing(**timing) for timing in found["timings"]),
    )

    def collective(size: float) -> float:
        choice = selection.model.choose(size, topology, setting.wire, (setting.allreduce,))
        return choice.seconds * selection.correction(choice.algorithm, int(size))

    work = compute(moments, setting.batch)
    buckets = [[place] for place in range(len(work.gradients))]
    share = Contention(min(found["processor_share"], 1.0))
    return simulate(work, buckets, collective, contention=share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds for one lab")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    calibrated: dict[int, dict[int, dict[str, Any]]] = {}
    for setting in SETTINGS:
        total = setting.hosts * setting.ranks
        if total not in calibrated:
            calibrated[total] = on_one_host(total, options.steps)
        found = in_the_lab(setting, options.steps, options.timeout)
        moments = found.pop("batches")[str(setting.batch)]
        step = predict(setting, calibrated[total], found)
        bound = CostModel.from_mapping(found["model"]).bound(
            sum(moments["bytes"]), Grid(setting.hosts, setting.ranks), setting.wire  # type: ignore[arg-type]
        )  # fmt: skip
        rows.append(
            {
                **vars(setting),
                "predicted_s": round(step.seconds, 4),
                "measured_s": round(moments["step"], 4),
                "error": round(step.seconds / moments["step"] - 1, 4),
                "fastest_s": round(min(moments["steps"]), 4),
                "slowest_s": round(max(moments["steps"]), 4),
                "compute_s": round(step.compute, 4),
                "communication_s": round(step.communication, 4),
                "network_bound_s": round(bound, 4),
                "processor_share": round(found["processor_share"], 3),
            }
        )
        print(" ".join(f"{name}={value}" for name, value in rows[-1].items()), flush=True)
        errors = [abs(row["error"]) for row in rows]
        notes = [f"median of |error| {median(errors):.1%}, worst {max(errors):.1%}"]
        write_record(options.json, BenchmarkRecord("plan-lab", FORMULA, rows, notes=notes))
    print(notes[0])


if __name__ == "__main__":
    main()
