"""`study generalization-gap`: the accuracy that a large batch loses, and what remedies regain.

Hoffer et al. 2017, "Train longer, generalize better", table 1. The first rows are the small batch,
and the large batch with nothing adapted. Three remedies follow, each added to the ones before: a
rate by the square root of the batch, ghost batches of the small batch's size, and as many updates
as the small batch takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from statistics import mean, stdev
from typing import Any

from scipy.special import stdtr

from largebatch._errors import UserError
from largebatch.schedule import Duration
from largebatch.study.grid import GridStudy
from largebatch.study.settings import base_config
from largebatch.study.study import studies
from largebatch.tasks import Figure

SMALL = "small batch"
TIMES = 32  # the large batch, in small ones: 4096 to 128


@studies.register(
    "generalization-gap",
    "small batch, large batch, + rate, + ghosts, + regime: the gap and what closes it",
    "Hoffer et al. 2017",
)
class GeneralizationGap(GridStudy):
    """The small batch, the large one, and three remedies.

    Args:
        base: settings of the small batch.
        large: the large batch; unset: 32 times the small batch.
        ghost: samples in a ghost batch; unset: the small batch.
        part: share of the regime's length and milestones that is trained, such as 20%. The last
            remedy takes as many updates as the small batch, so its epochs grow with the batch.
        seeds: seeds of each row's runs, which are compared pair by pair.
        figure: figure of the last validation; unset: the task's headline figure.
    """

    formula = (
        "mean and standard deviation over seeds of the last validation's {figure}{unit}; gap = by"
        " how much the small batch is better; p of a paired t test, two-sided; both over the seeds"
        " of which neither run was lost"
    )

    def __init__(
        self,
        base: Sequence[str],
        large: int | None = None,
        ghost: int | None = None,
        part: Duration | None = None,
        seeds: Sequence[int] = (0, 1, 2),
        figure: str | None = None,
    ) -> None:
        config = base_config(base, "generalization-gap")
        small = config.batch.size
        large = TIMES * small if large is None else large
        if large <= small:
            raise UserError(f"--large={large}: above the small batch, {small}")
        if part is not None and (part.unit != "%" or not 0 < part.value <= 100):
            raise UserError(f"--part={part}: a share of the regime, such as 20%")
        ghost = small if ghost is None else ghost
        at_large = [f"--batch.size={large}", "--optim.scaling=none"]
        rate = [f"--batch.size={large}", f"--batch.reference={small}", "--optim.scaling=sqrt"]
        ghosts = [*rate, "--norm.kind=ghost", f"--norm.ghost_size={ghost}"]
        regime = [*ghosts, "--schedule.regime=steps"]
        if part is not None:
            share = part.value / 100
            schedule = config.schedule
            shorter = ", ".join(_scaled(each, share) for each in schedule.milestones)
            regime += [
                f"--schedule.length={_scaled(schedule.length, share)}",
                f"--schedule.milestones=[{shorter}]",
            ]
            if schedule.warmup is not None:
                regime.append(f"--schedule.warmup={_scaled(schedule.warmup, share)}")
        cells = {
            SMALL: [],
            "large batch": at_large,
            "+ rate by the root": rate,
            "+ ghosts": ghosts,
            "+ regime": regime,
        }
        super().__init__(cells, seeds, base, figure, None, "training", "generalization-gap")
        times = -(-large // small)
        self.notes = (
            f"batch {small:,} and {large:,}, ghosts of {ghost:,}, {config.schedule.length}; the"
            f" regime {times} times as long" + (f", {part} of it" if part else ""),
        )

    def further(
        self, cell: str, values: Mapping[str, Mapping[int, float]], known: Figure
    ) -> dict[str, Any]:
        """Return the gap to the small batch, and the probability of so large a gap by chance."""
        both = [seed for seed in values[cell] if seed in values[SMALL]]
        if not both:
            return {}
        small, own = ([values[name][seed] for seed in both] for name in (SMALL, cell))
        sign = 1 if known.better == "higher" else -1
        found: dict[str, Any] = {"gap": round(sign * (mean(small) - mean(own)), 4)}
        if cell != SMALL:
            p = paired(small, own)
            found["p"] = None if p is None else float(f"{p:.2g}")
        return found


def paired(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return the two-sided p of a paired t test; None without variation, or for one pair."""
    differences = [a - b for a, b in zip(first, second, strict=True)]
    if len(differences) < 2 or not (spread := stdev(differences)):
        return None
    t = mean(differences) / (spread / math.sqrt(len(differences)))
    return float(2 * stdtr(len(differences) - 1, -abs(t)))


def _scaled(length: Duration, share: Fraction) -> str:
    value = length.value * share
    if length.unit in ("sa", "st"):
        value = Fraction(max(1, round(value)))
    return str(Duration(value, length.unit)) if length.unit != "%" else str(length)
