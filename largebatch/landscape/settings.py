"""The settings of a landscape."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from largebatch._errors import UserError
from largebatch.weight_space.direction import OneDimensional

Statistics: TypeAlias = Literal["as-trained", "recomputed", "interpolated"]

OF_ONE = ("line", "plane", "smooth")
OF_TWO = ("line", "bezier", "polychain")
TRAINED = ("bezier", "polychain")
USUAL = {1: ("line", "plane"), 2: OF_TWO}
POINTS = {"plane": 21, "smooth": 21}  # a side; of all others 51 (Li et al. take 51 of both)
STATISTICS: dict[int, Statistics] = {1: "as-trained", 2: "recomputed"}


@dataclass(frozen=True)
class Settings:
    """The options of the command; every rank has the same.

    Attributes:
        runs: one or two, each a run directory or a checkpoint of one.
        pictures: names of :data:`OF_ONE` or :data:`OF_TWO`.
        points: number of points along a side of each picture; None: :data:`POINTS`.
        extent: how far pictures around one run go, in multiples of a filter-normalised direction.
        split: data split of the loss.
        samples: number of samples, chosen by ``seed``; None: all.
        statistics: running statistics of batch norms at a point. As-trained: those of the run, as
            in Li et al. 2018; the default around one run. Recomputed: from ``statistics_samples``
            training samples at every point; the default between two runs, since one network's
            statistics do not fit another (Garipov et al. 2018, section 3.3). Interpolated: along a
            line, like the weights (as in the code of Li et al.).
        one_dimensional: see :func:`~largebatch.weight_space.filter_normalized_direction`.
        widths: widths of the Gaussian, in lengths of filters.
        draws: number of pairs of noise.
        bends: number of bends of a trained path, its ends included.
        length: length of a path's training; None: the first run's own schedule.
        lr: learning rate of a path's training; None: the first run's.
        overrides: options of ``largebatch train``, such as the present directory of the data.
    """

    runs: tuple[Path, ...]
    pictures: tuple[str, ...]
    points: int | None
    extent: float
    split: Literal["train", "val"]
    samples: int | None
    seed: int
    statistics: Statistics
    statistics_samples: int
    one_dimensional: OneDimensional
    widths: tuple[float, ...]
    draws: int
    bends: int
    length: str | None
    lr: float | None
    overrides: tuple[str, ...]
    allow_imports: bool

    def check(self) -> None:
        """Check the settings; errors name the option.

        Raises:
            UserError: an option is not valid; the message is one line.
        """
        count = len(self.runs)
        allowed = OF_ONE if count == 1 else OF_TWO
        for name in self.pictures:
            if name not in allowed:
                raise UserError(
                    f"--pictures {name}: of {'one run' if count == 1 else 'two runs'} there are"
                    f" {', '.join(allowed)}"
                )
        if len(set(self.pictures)) < len(self.pictures):
            raise UserError(f"--pictures {' '.join(self.pictures)}: one is named twice")
        least = {"--points": (self.points, 2), "--samples": (self.samples, 1)}
        least |= {"--draws": (self.draws, 1), "--bends": (self.bends, 3)}
        least |= {"--norm-samples": (self.statistics_samples, 2), "--seed": (self.seed, 0)}
        for option, (value, minimum) in least.items():
            if value is not None and value < minimum:
                raise UserError(f"{option} {value}: {minimum} or more")
        positive = {"--extent": (self.extent,), "--widths": self.widths}
        positive["--lr"] = () if self.lr is None else (self.lr,)
        for option, values in positive.items():
            for number in values:
                if not 0 < number < math.inf:
                    raise UserError(f"{option} {number}: above 0")
        self._check_statistics(count)

    def _check_statistics(self, count: int) -> None:
        if count == 1 and self.statistics == "interpolated":
            raise UserError(
                "--norm-statistics interpolated: between two runs; of one take as-trained or"
                " recomputed"
            )
        if count == 2 and self.statistics == "as-trained":
            raise UserError(
                "--norm-statistics as-trained: the statistics of one run are not those of the"
                " other; take recomputed or interpolated"
            )
        curved = [name for name in self.pictures if name in TRAINED]
        if curved and self.statistics == "interpolated":
            raise UserError(
                f"--norm-statistics interpolated: the bends of a {curved[0]} have none to"
                " interpolate; take recomputed, or --pictures line"
            )

    def side(self, picture: str) -> int:
        """Return the number of points along a side of a picture."""
        return self.points or POINTS.get(picture, 51)
