"""The generalisation gap of F1 on MNIST and what closes it (Hoffer et al. 2017, table 1).

    python benchmarks/hoffer_f1_mnist.py --data=DATA --folder RUNS --json FILE

Every recipe runs with every seed. Regime adaptation runs a fifth of the lecture's regime (1,600
epochs) unless `--whole_regime=true` is given: 10 epochs stretched by 4096 / 128, milestones in
proportion.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from largebatch._errors import UserError
from largebatch._paths import UserPath
from largebatch.cli import main
from largebatch.study import GridStudy

RECIPE = "hoffer-f1-mnist-"
A_FIFTH = ["--schedule.length=10ep", "--schedule.milestones=[2ep, 4ep, 6ep]"]
LECTURE = {"small": 98.27, "large": 97.05, "sqrt": 97.55, "ghost": 97.60, "regime": 98.53}


class GeneralisationGap(GridStudy):
    """The small batch, the large one, and three remedies."""

    formula = (
        "top-1 = right answers / 10,000 test images after the last epoch, in %, mean and standard "
        "deviation over seeds; gap = mean top-1 of the small batch - mean top-1"
    )

    def __init__(
        self,
        data: UserPath,
        seeds: Sequence[int] = (0, 1, 2),
        recipes: Sequence[str] = tuple(LECTURE),
        whole_regime: bool = False,
    ) -> None:
        if not {"small"} <= set(recipes) <= set(LECTURE):
            raise UserError(f"--recipes={recipes}: small, and any of {', '.join(LECTURE)}")
        fifth = [] if whole_regime else A_FIFTH
        cells = {
            f"{RECIPE}{recipe}": [
                f"--recipe={RECIPE}{recipe}",
                f"--data.root={data}",
                *(fifth if recipe == "regime" else []),
            ]
            for recipe in recipes
        }
        super().__init__(cells, seeds, (), "top1", True, "recipe", "hoffer-f1-mnist")
        regime = "1,600 epochs" if whole_regime else "320 epochs, a fifth of the regime"
        self.notes = (
            f"50 epochs (regime: {regime}), fp32, SGD momentum 0.9, weight decay 1e-4, clip 5.0",
            "lecture: the table of Hoffer et al. 2017, their own hyperparameters and code",
        )

    def job_name(self, cell: str, seed: int) -> str:
        """Return the name of one run, without what all have in common."""
        return f"{cell.removeprefix(RECIPE)}-{seed}"

    def further(self, cell: str, values: Mapping[str, Sequence[float]]) -> dict[str, Any]:
        """Return the gap, and what the lecture says."""
        return {
            "gap": round(mean(values[f"{RECIPE}small"]) - mean(values[cell]), 2),
            "lecture": LECTURE[cell.removeprefix(RECIPE)],
        }


if __name__ == "__main__":
    sys.exit(main(["study", "hoffer_f1_mnist:GeneralisationGap", *sys.argv[1:]]))
