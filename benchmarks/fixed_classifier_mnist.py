"""Fixed classifiers against a learned one: F1 on MNIST (Hoffer et al. 2018, Fix your classifier).

    python benchmarks/fixed_classifier_mnist.py --data=DATA --folder RUNS --json FILE

The recipe is `hoffer-f1-mnist-small` (batch 128), `--epochs` long, its milestones at a fifth, two
and three fifths; only the classifier differs between rows.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from largebatch._paths import UserPath
from largebatch.cli import main
from largebatch.study import GridStudy

CLASSIFIERS = ("learned", "hadamard", "orthonormal")


class FixedClassifiers(GridStudy):
    """A learned classifier and two fixed ones."""

    formula = (
        "top-1 = right answers / 10,000 test images after the last epoch, in %, mean and standard "
        "deviation over seeds; against learned = mean top-1 - mean top-1 of the learned classifier"
    )

    def __init__(self, data: UserPath, seeds: Sequence[int] = (0, 1, 2), epochs: int = 20) -> None:
        milestones = ", ".join(f"{epochs * part / 5:g}ep" for part in (1, 2, 3))
        base = [
            "--recipe=hoffer-f1-mnist-small",
            f"--data.root={data}",
            f"--schedule.length={epochs}ep",
            f"--schedule.milestones=[{milestones}]",
        ]
        cells = {name: [f"--model.classifier={name}"] for name in CLASSIFIERS}
        super().__init__(cells, seeds, base, "top1", True, "classifier", "fixed-classifier-mnist")
        self.epochs = epochs
        self.notes = (
            f"batch 128, {epochs} epochs, SGD 0.9, rate 0.1, weight decay 1e-4, clip 5.0",
            "one rate for all, that of the learned classifier",
        )

    def job_name(self, cell: str, seed: int) -> str:
        """Return the name of one run, its length in it."""
        return f"{cell}-{self.epochs}ep-{seed}"

    def further(self, cell: str, values: Mapping[str, Sequence[float]]) -> dict[str, Any]:
        """Return what fixing the classifier costs."""
        return {"against learned": round(mean(values[cell]) - mean(values["learned"]), 2)}


if __name__ == "__main__":
    sys.exit(main(["study", "fixed_classifier_mnist:FixedClassifiers", *sys.argv[1:]]))
