"""B20 in three ways: by branches, by runs to a target, and as the noise scale predicts it.

    python benchmarks/critical_batches.py --data=DATA --folder RUNS --json FILE --html PAGE

Two problems with three optimizers each. Every one has a run whose noise scale is measured in every
step, branches off three of its checkpoints, and runs to a target of the same config. DATA holds
MNIST as ``data.root`` takes it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from largebatch._paths import UserPath
from largebatch.cli import main
from largebatch.record import BenchmarkRecord
from largebatch.report.record_page import blank_figure
from largebatch.schedule import Duration
from largebatch.study import Done, Job, Study
from largebatch.study.critical_batch import CriticalBatch
from largebatch.study.hyperbola import OVERHEAD
from largebatch.study.steps_to_target import StepsToTarget, figures

FORMULA = """\
branches: the batch whose branches need 20% more samples, as `study critical-batch` finds it;
to target: the batch whose runs need 20% more samples, as `study steps-to-target` finds it;
noise = T / |G|^2 there, over the last 2% of the run; predicted: 0.2 times it;
ratio = branches / predicted; [...]: 95% intervals"""
PROBE = "[{name: noise, every: 1st, source: passes, half_life: 2%}]"
# Settings; where branches begin; target; batches of the runs to it.
PROBLEMS: dict[str, dict[str, Any]] = {
    "digits": {
        "base": ["--recipe=digits", "--evaluate.every=0.25ep"],
        "ghost": 16,
        "at": ["1.5ep", "2ep", "3ep"],
        "target": {"loss": 0.05},
        "batches": [16, 32, 64, 128, 256, 512],
        "rates": {"sgd": 0.05, "lars": 1.0, "adamw": 0.006},
    },
    "mnist-f1": {
        "base": ["--recipe=mnist-f1", "--evaluate.every=0.1ep"],
        "ghost": 32,
        "at": ["3%", "6%", "10%"],
        "target": {"loss": 0.1},
        "batches": [64, 128, 256, 512, 1024, 2048],
        "rates": {"sgd": 0.1, "lars": 1.0, "adamw": 0.001},
    },
}
OPTIMIZERS = {
    "sgd": [],
    "lars": ["--optim.name=lars"],
    "adamw": ["--optim.name=adamw", "--optim.weight_decay=0.01"],
}


class CriticalBatches(Study):
    """Two studies of every problem with every optimizer, as one."""

    def __init__(
        self,
        data: UserPath,
        problems: Sequence[str] = tuple(PROBLEMS),
        optimizers: Sequence[str] = tuple(OPTIMIZERS),
        seeds: int = 2,
    ) -> None:
        self.pairs = [(problem, optimizer) for problem in problems for optimizer in optimizers]
        self.branches: dict[tuple[str, str], CriticalBatch] = {}
        self.targets: dict[tuple[str, str], StepsToTarget] = {}
        for problem, optimizer in self.pairs:
            known = PROBLEMS[problem]
            base = [*known["base"], *OPTIMIZERS[optimizer]]
            base.append(f"--optim.lr={known['rates'][optimizer]}")
            if problem != "digits":
                base.append(f"--data.root={data}")
            # Passes of a ghost each, whose gradients tell the noise scale.
            measured = [f"--batch.micro={known['ghost']}", f"--probes={PROBE}"]
            self.branches[problem, optimizer] = CriticalBatch(
                at=[Duration.parse(each) for each in known["at"]],
                window=Duration.parse("1%"),
                seeds=seeds,
                base=[*base, *measured, "--evaluate.every=5ep"],
            )
            self.targets[problem, optimizer] = StepsToTarget(
                batches=known["batches"], seeds=seeds, target=known["target"], base=base
            )

    def _studies(self) -> Iterator[tuple[str, Study]]:
        for problem, optimizer in self.pairs:
            yield f"{problem}-{optimizer}-branches-", self.branches[problem, optimizer]
            yield f"{problem}-{optimizer}-target-", self.targets[problem, optimizer]

    def jobs(self, done: Done) -> Iterable[Job]:
        """Return the jobs of all studies."""
        for prefix, study in self._studies():
            for job in study.jobs(_part(done, prefix)):
                yield replace(job, name=f"{prefix}{job.name}")

    def says(self, done: Done) -> Iterable[str]:
        """Return what the studies say, each with its name."""
        for prefix, study in self._studies():
            yield from (f"{prefix[:-1]}: {line}" for line in study.says(_part(done, prefix)))

    def conclude(self, done: Done) -> BenchmarkRecord:
        """Return a row a checkpoint."""
        rows: list[dict[str, Any]] = []
        notes: list[str] = []
        details: list[dict[str, Any]] = []
        for problem, optimizer in self.pairs:
            name = f"{problem}-{optimizer}"
            to_target = self.targets[problem, optimizer].conclude(_part(done, f"{name}-target-"))
            branched = self.branches[problem, optimizer].conclude(_part(done, f"{name}-branches-"))
            reached = to_target.rows[0]
            for point in branched.details["points"]:
                rows.append(_row(problem, optimizer, point, reached))
                drawn = {key: point[key] for key in ("at", "samples", "B20", "low", "high")}
                noise = {key: value for key, value in point["noise"].items() if "_of_" not in key}
                details.append(
                    {"problem": problem, "optimizer": optimizer, **drawn, "noise": noise}
                    | {"target": [reached.get(key) for key in ("B20", "B20 low", "B20 high")]}
                )
            notes += [f"{name}: branches: {each}" for each in branched.notes]
            notes += [f"{name}: to the target: {each}" for each in to_target.notes]
        return BenchmarkRecord(
            "critical-batches", FORMULA, rows, notes=notes, details={"points": details}
        )

    def charts(self, record: BenchmarkRecord) -> Iterator[tuple[str, str, Any]]:
        """Draw B20 along the run in the three ways, a chart for a problem and optimizer."""
        from plotly.graph_objects import Scatter

        for problem, optimizer in self.pairs:
            points = [
                each
                for each in record.details["points"]
                if (each["problem"], each["optimizer"]) == (problem, optimizer)
            ]
            figure = blank_figure("samples seen", "batch")
            figure.update_yaxes(type="log", rangemode="normal")
            x = [point["samples"] for point in points]
            noise = [point["noise"] for point in points]
            ways: dict[str, list[tuple[Any, ...]]] = {
                "branches": [(p["B20"], p["low"], p["high"]) for p in points],
                "predicted by the noise scale": [
                    tuple(
                        None if n.get(key) is None else OVERHEAD * n[key]
                        for key in ("noise_scale", "noise_scale_low", "noise_scale_high")
                    )
                    for n in noise
                ],
                "runs to the target": [tuple(point["target"]) for point in points],
            }
            for name, found in ways.items():
                middle = [each[0] for each in found]
                bars = {
                    "type": "data",
                    "symmetric": False,
                    "array": [(h or m or 0) - (m or 0) for m, _, h in found],
                    "arrayminus": [(m or 0) - (low or m or 0) for m, low, _ in found],
                    "thickness": 1,
                }
                figure.add_trace(
                    Scatter(x=x, y=middle, error_y=bars, name=name, mode="lines+markers")
                )
            yield f"{problem}, {optimizer}: B20 along the run", "bars: 95% intervals", figure


def _part(done: Done, prefix: str) -> Done:
    """Return the outcomes of one study by the names that it gave them."""
    return {
        name.removeprefix(prefix): outcome
        for name, outcome in done.items()
        if name.startswith(prefix)
    }


def _row(
    problem: str, optimizer: str, point: dict[str, Any], reached: dict[str, Any]
) -> dict[str, Any]:
    noise = point["noise"]
    scale, low, high = (
        noise.get(key) for key in ("noise_scale", "noise_scale_low", "noise_scale_high")
    )
    predicted = None if scale is None else OVERHEAD * scale
    ratio = None if predicted is None or point["B20"] is None else point["B20"] / predicted
    return {
        "problem": problem,
        "optimizer": optimizer,
        "at": point["at"],
        "branches": _with_interval(point["B20"], point["low"], point["high"]),
        "to target": _with_interval(*(reached.get(key) for key in ("B20", "B20 low", "B20 high")))
        if reached["verdict"] != "refused"
        else "refused",
        "noise": _with_interval(scale, low, high),
        "predicted": None if predicted is None else figures(predicted, 3),
        "ratio": "" if ratio is None else figures(ratio, 2),
    }


def _with_interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return f"above {figures(low, 3):,}" if low else "undecided"
    if low is None:  # one seed ruled the larger batches out
        return f"{figures(value, 3):,}"
    upper = "above all" if high is None else f"{figures(high, 3):,}"
    return f"{figures(value, 3):,} [{figures(low, 3):,}, {upper}]"


if __name__ == "__main__":
    sys.exit(main(["study", "critical_batches:CriticalBatches", *sys.argv[1:]]))
