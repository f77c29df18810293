"""The gap of a large batch, trained without a budget until its loss ceases to improve.

Keskar et al. 2017, as Hoffer et al. 2017 quote it. Both batches have the same rate and run until
the validation loss has set no new low for a while: ``schedule.stop=plateau``.
"""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from torch import nn

from largebatch.lab.experiment import (
    Check,
    Experiment,
    Findings,
    Scale,
    agreed,
    experiments,
    spread,
)
from largebatch.lab.pictures import Series, lines
from largebatch.record import read_metrics
from largebatch.train import run
from largebatch.train.parse import parse

SMALL, LARGE = 16, 256


def network() -> nn.Module:
    """Build 64-128-128-10 for the digits."""
    layers = (nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    return nn.Sequential(nn.Flatten(), *layers)


class Trained(NamedTuple):
    """A run at its end: its figures, and those of its evaluations by epoch."""

    top1: float
    by_epoch: dict[float, float]  # top-1
    epochs: float
    steps: int
    since_low: float
    curve: Series


def trained(batch: int, seed: int, limit: int, length: int, patience: int) -> Trained:
    """Train in a run directory that is gone afterwards.

    Args:
        limit: digits to train with. length, patience: epochs.
    """
    with TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        keys = {
            "model.name": "largebatch.lab.no_budget:network",
            "data.limit": limit,
            "batch.size": batch,
            "optim.lr": 0.02,
            "schedule.curve": "constant",
            "schedule.length": f"{length}ep",
            "schedule.stop": "plateau",
            "schedule.patience": f"{patience}ep",
            "evaluate.every": "4ep",
            "telemetry.every": "1000ep",
            "telemetry.hardware_every": 0,
            "run.seed": seed,
            "run.dir": folder,
        }
        outcome = run(parse([f"--{key}={value}" for key, value in keys.items()]))
        judged = [
            line for line in read_metrics(Path(folder) / "metrics.jsonl") if line["split"] == "val"
        ]
    losses = [line["loss"] for line in judged]
    low = judged[losses.index(min(losses))]["epoch"]
    curve = Series(f"batch {batch}", [line["step"] for line in judged], losses)
    epochs = judged[-1]["epoch"]
    by_epoch = {line["epoch"]: line["top1"] for line in judged}
    return Trained(judged[-1]["top1"], by_epoch, epochs, outcome.steps, epochs - low, curve)


@experiments.register("no-budget")
class NoBudget(Experiment):
    """Trains a perceptron at batch 16 and at batch 256, both to the plateau."""

    lecture = "Train longer, generalize better (Hoffer, Hubara, Soudry)"
    claim = "The gap persisted without any budget, until the loss function ceased to improve"
    source = "Keskar et al. 2017; Hoffer et al. 2017"
    minutes = 2.0
    seeds = 5

    def measure(self, scale: Scale) -> Findings:
        """Compare validation accuracies, seed by seed."""
        limit, length, patience = scale.pick((256, 400, 8), (512, 6000, 40))
        rows, curves, gaps, early, ended = [], [], [], [], []
        for seed in scale.seeds:
            small, large = (trained(b, seed, limit, length, patience) for b in (SMALL, LARGE))
            gaps.append(small.top1 - large.top1)
            early.append(small.top1 - large.by_epoch[small.epochs])
            for batch, each in ((SMALL, small), (LARGE, large)):
                at_end = each.epochs >= length
                ended.append(at_end or each.since_low == patience)
                rows.append(
                    {
                        "batch": batch,
                        "seed": seed,
                        "top1": round(each.top1, 4),
                        "epochs": each.epochs,
                        "steps": each.steps,
                        "ended by": "length" if at_end else "plateau",
                    }
                )
            if seed == scale.seeds[0]:
                curves = [small.curve, large.curve]
        all_plateau = all(row["ended by"] == "plateau" for row in rows)
        checks = [
            Check(
                f"top-1 of batch {SMALL} less that of batch {LARGE}",
                "above 0: the gap persists",
                spread(gaps),
                agreed(gap > 0 for gap in gaps) if all_plateau else None,
            ),
            Check(
                f"the same when batch {LARGE} has had as many epochs as batch {SMALL}",
                "above 0: the gap",
                spread(early),
                agreed(gap > 0 for gap in early),
            ),
            Check(
                "epochs from the least loss to the end, of runs that stopped before their length",
                str(patience),
                "as asked" if all(ended) else "others",
                all(ended),
                True,
            ),
        ]
        chart = ("Validation loss", "first seed", lines("step", "loss", curves, "x"))
        notes = [f"{limit} digits to train with, 355 held out: one image is 0.0028"]
        return Findings(checks, rows, [chart], notes)
