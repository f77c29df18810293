"""The step simulator against training steps in the lab: ResNet-18 on hosts of one machine.

    sudo python benchmarks/netlab/plan.py --json benchmarks/results/plan_lab.json

A prediction is the median of five, one for each of five probes, which run in the lab before the
steps as one does at the start of any program. The rest is compute measured in the same run without
any exchange at two other batches (``CALIBRATION``), between which every moment of a step is taken
to be linear. Hosts share the machine's cores, so work and all-reduces slow each other down: by how
much is measured on messages of 4 MiB beside the work of the larger of those batches. Nothing is
fitted to the steps that are predicted.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from lab import Lab

from largebatch.distributed.cost_model import CostModel
from largebatch.distributed.probe import Timing
from largebatch.distributed.selection import Selection
from largebatch.distributed.topology import Topology
from largebatch.record import BenchmarkRecord, write_record
from largebatch.simulate import Compute, Contention, SimulatedStep, simulate

RANK = Path(__file__).with_name("training.py")
CALIBRATION = (6, 48)  # samples a rank; no setting below has either
BUCKET_MB = 4.0
FORMULA = (
    "error = predicted / measured - 1, of the median step's seconds, the slowest rank's; "
    "goals: median of |error| under 8%, worst under 15%"
)


@dataclass(frozen=True)
class Setting:
    """One lab: hosts, ranks of each, Mbit/s of a host's link, and its lines of steps.

    A line is samples a rank, the all-reduce and, for the torus, the type between hosts.
    """

    hosts: int
    ranks: int
    rate: int
    lines: tuple[str, ...]


SETTINGS = (
    Setting(2, 2, 200, ("16:flat", "40:torus:fp32")),
    Setting(2, 3, 300, ("24:flat", "32:torus:bf16")),
    Setting(3, 2, 600, ("8:torus:fp32", "40:flat")),
    Setting(2, 4, 400, ("16:torus:fp32", "32:flat")),
    Setting(4, 2, 200, ("12:torus:bf16", "24:torus:fp32")),
)


def measure(setting: Setting, steps: int, timeout: float) -> dict[str, Any]:
    """Return what the ranks of a lab of ``setting`` found."""
    with tempfile.TemporaryDirectory() as folder, Lab(setting.hosts, setting.rate) as lab:
        result = Path(folder, "result.json")
        arguments = [f"--json={result}", f"--steps={steps}", f"--bucket-mb={BUCKET_MB}"]
        arguments += ["--calibration", *map(str, CALIBRATION), "--lines", *setting.lines]
        processes = lab.torchrun(setting.ranks, RANK, arguments)
        outputs = [process.communicate(timeout=timeout)[0] for process in processes]
        if not result.exists():
            raise RuntimeError("netlab: the ranks failed:\n" + "\n".join(outputs))
        return dict(json.loads(result.read_text()))


def compute(calibration: dict[str, Any], batch: int) -> Compute:
    """Return a rank's work on ``batch`` samples, linear between the calibration's batches."""
    low, high = (calibration[str(size)] for size in CALIBRATION)
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


def row(setting: Setting, line: str, found: dict[str, Any]) -> dict[str, Any]:
    """Predict a line from calibration and probe, and set what was measured beside it."""
    batch, algorithm, *rest = line.split(":")
    wire: Any = rest[0] if rest else "fp32"
    topology = Topology.from_hosts([h for h in range(setting.hosts) for _ in range(setting.ranks)])
    work = compute(found["calibration"], int(batch))
    buckets = [[place] for place in range(len(work.gradients))]
    speeds = dict(found["speeds"][line])
    share = speeds.pop("behind")
    lost = {stream: 1 - speed for stream, speed in speeds.items()}
    # Both at once are never slower than one after the other, but for what the measurement errs by.
    excess = max(sum(lost.values()), 1.0)
    contention = Contention(**{stream: part / excess for stream, part in lost.items()})

    def predict(probe: dict[str, Any]) -> SimulatedStep:
        model = CostModel.from_mapping(probe["model"])
        timings = tuple(Timing(**timing) for timing in probe["timings"])
        selection = Selection("auto", topology, wire, model, timings)

        def collective(size: float) -> float:
            choice = model.choose(size, topology, wire, (algorithm,))  # type: ignore[arg-type]
            return selection.seconds(choice, int(size))

        return simulate(work, buckets, collective, contention=contention, behind=share)

    predictions = sorted(map(predict, found["probes"][wire]), key=lambda step: step.seconds)
    step = predictions[len(predictions) // 2]
    measured = found["lines"][line]
    size = sum(measured["bytes"])
    return {
        "hosts": setting.hosts,
        "ranks": setting.ranks,
        "mbit": setting.rate,
        "batch": int(batch),
        "allreduce": " ".join([algorithm, *rest]),
        "predicted_s": round(step.seconds, 4),
        "by_each_probe_s": [round(each.seconds, 4) for each in predictions],
        "measured_s": round(measured["step"], 4),
        "error": round(step.seconds / measured["step"] - 1, 4),
        "steps_s": [round(seconds, 4) for seconds in measured["steps"]],
        "compute_s": round(step.compute, 4),
        "communication_s": round(step.communication, 4),
        "network_bound_s": round(
            2 * (setting.hosts - 1) / setting.hosts * 8 * size / (1e6 * setting.rate)
            * (0.5 if wire == "bf16" else 1.0), 4
        ),
        "speeds_beside": {stream: round(speed, 3) for stream, speed in speeds.items()},
        "share_behind": round(share, 3),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds for one lab")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for setting in SETTINGS:
        found = measure(setting, options.steps, options.timeout)
        for line in setting.lines:
            rows.append(row(setting, line, found))
            print(" ".join(f"{name}={value}" for name, value in rows[-1].items()), flush=True)
        errors = [abs(line["error"]) for line in rows]
        notes = [f"median of |error| {median(errors):.1%}, worst {max(errors):.1%}"]
        write_record(options.json, BenchmarkRecord("plan-lab", FORMULA, rows, notes=notes))
        print(notes[0], flush=True)


if __name__ == "__main__":
    main()
