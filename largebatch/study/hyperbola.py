"""Fit the samples to a target against the batch: McCandlish's hyperbola as a straight line.

Steps S and samples E to a target trade off as (S / Smin - 1)(E / Emin - 1) = 1 (McCandlish et al.
2018, section 2.3; measured by Shallue et al. 2019). With E = S B this is a line, E = Emin + Smin B.
The critical batch is the intercept over the slope. E is 20% above Emin at a fifth of the critical
batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import fdtrc, stdtrit

from largebatch.study.convergence import Cell
from largebatch.study.isotonic import crossing, isotonic

Numbers = NDArray[np.float64]

OVERHEAD = 0.2  # of samples, at B20: Zhang et al. 2024's bound of an efficient batch
CONFIDENCE = 0.95
DOES_NOT_FIT = 0.01  # p of the lack of fit, below which the line is no headline
FEWEST = 3  # batches: two fit any line
MOST_RATIO = 1e9  # of needs, which no batches explain and arithmetic does not resolve
DRAWS = 400
TOLD = 0.75  # of the line's scatter: a flat part that leaves less is worth telling


class NoHyperbola(ValueError):
    """The runs do not determine a critical batch; the message gives the reason."""


@dataclass(frozen=True)
class Line:
    """The fitted line E = Emin + Smin B.

    Attributes:
        samples: Emin, in the unit of the runs.
        steps: Smin, in the unit of the runs per sample of the batch.
        critical, low, high: intercept / slope with its 95% interval.
        scatter: chi squared per degree of freedom of the batches' means about the line. If above 1,
            the variances are multiplied by it (Birge 1932).
        misfit: probability of at least this scatter if the line were true (an F test). None if no
            batch has two runs, so that the spread of runs is not known.
        residuals: (mean - line) / line for each batch.
        covariance: covariance of intercept and slope, (2, 2).
    """

    samples: float
    steps: float
    critical: float
    low: float
    high: float
    scatter: float
    misfit: float | None
    residuals: tuple[float, ...]
    covariance: tuple[tuple[float, float], tuple[float, float]]

    @property
    def fits(self) -> bool:
        """Whether the spread of the runs explains the scatter about the line."""
        return self.misfit is None or self.misfit >= DOES_NOT_FIT

    def needed(self, batch: float) -> float:
        """Return what a batch needs to reach the target."""
        return self.samples + self.steps * batch


def variances(cells: Sequence[Cell]) -> tuple[Numbers, bool]:
    """Return the variance of each batch's mean, and whether the spread of runs is known.

    The variance of few runs can be near zero by chance (MLPerf rounds to whole epochs). So no
    variance is taken below a quarter of the value from the relative variance of all batches
    together.
    """
    means = np.array([cell.mean for cell in cells])
    counts = np.array([len(cell.needed) for cell in cells])
    spread = [cell.deviation for cell in cells]
    relative = [
        (deviation / mean) ** 2
        for deviation, mean in zip(spread, means, strict=True)
        if deviation is not None
    ]
    pooled = float(np.mean(relative)) if relative else 0.0
    if pooled == 0.0:
        return means**2 / counts, False
    own = np.array([0.0 if deviation is None else deviation for deviation in spread])
    alone = np.array([deviation is None for deviation in spread])
    least = means * math.sqrt(pooled) * np.where(alone, 1.0, 0.5)
    return np.maximum(own, least) ** 2 / counts, True


def fit_line(cells: Sequence[Cell]) -> Line:
    """Fit E = Emin + Smin B to the means of batches, by weighted least squares.

    The interval of the critical batch is Fieller's (1954): all ratios that the intercept and the
    slope do not rule out. The quantile is Student's, with the degrees of freedom of the runs.

    Raises:
        NoHyperbola: there are too few batches, or all need the same; or, within their errors, the
            samples do not grow with the batch or grow in proportion to the batch.
    """
    if len(cells) < FEWEST:
        count = f"{len(cells)} batch{'es' * (len(cells) != 1)}"
        raise NoHyperbola(f"{count}: a line needs {FEWEST} to be tested by")
    if len({cell.mean for cell in cells}) == 1:
        raise NoHyperbola(
            f"every batch needs {cells[0].mean:,.0f}: what is counted in steps that coarse shows no"
            " difference; evaluate more often (evaluate.every)"
        )
    ratio = max(cell.mean for cell in cells) / min(cell.mean for cell in cells)
    if ratio > MOST_RATIO:
        raise NoHyperbola(f"what batches need differs by a factor of {ratio:.2g}: a mistaken unit?")
    variance, known = variances(cells)
    solution, covariance, line, squares = _least_squares(cells, variance)
    freedom = len(cells) - 2
    scatter = squares / freedom
    covariance = covariance * (max(1.0, scatter) if known else scatter)
    runs = sum(len(cell.needed) - 1 for cell in cells) if known else freedom
    quantile = float(stdtrit(runs, (1 + CONFIDENCE) / 2))
    low, high = _fieller(solution, covariance, quantile)
    means = np.array([cell.mean for cell in cells])
    return Line(
        samples=float(solution[0]),
        steps=float(solution[1]),
        critical=float(solution[0] / solution[1]),
        low=low,
        high=high,
        scatter=scatter,
        misfit=float(fdtrc(freedom, runs, scatter)) if known else None,
        residuals=tuple(((means - line) / line).tolist()),
        covariance=tuple(map(tuple, covariance.tolist())),  # type: ignore[arg-type]
    )


def _least_squares(
    cells: Sequence[Cell], variance: Numbers
) -> tuple[Numbers, Numbers, Numbers, float]:
    """Return (intercept and slope, their covariance, the line at each batch, chi squared)."""
    batches = np.array([cell.batch for cell in cells], dtype=np.float64)
    means = np.array([cell.mean for cell in cells])
    design = np.stack([np.ones_like(batches), batches], axis=1)
    # In units of the largest batch: the sums of squares would differ by ten orders of magnitude.
    scale = np.array([1.0, batches.max()])
    scaled = design / scale
    covariance = np.linalg.inv(scaled.T @ (scaled / variance[:, None]))
    solution = covariance @ (scaled.T @ (means / variance))
    line = scaled @ solution
    squares = float(((means - line) ** 2 / variance).sum())
    return solution / scale, covariance / np.outer(scale, scale), line, squares


def scatter_of_runs(cells: Sequence[Cell], line: Line) -> tuple[float, int]:
    """Return the relative standard deviation of a new run about the line, at a batch not yet tried.

    Two variances add up: that of runs of one batch, and that of batches about the line, which is
    what chi squared has above 1 (it counts in variances of means).

    Returns:
        the standard deviation and its degrees of freedom; 0 and 0 if no batch has two runs.
    """
    freedom = sum(len(cell.needed) - 1 for cell in cells)
    if not freedom:
        return 0.0, 0
    squares = sum(
        (cell.deviation / cell.mean) ** 2 * (len(cell.needed) - 1)
        for cell in cells
        if cell.deviation is not None
    )
    runs = sum(len(cell.needed) for cell in cells) / len(cells)
    between = max(0.0, line.scatter - 1) / runs if line.misfit is not None else 0.0
    return math.sqrt(squares / freedom * (1 + between)), freedom


@dataclass(frozen=True)
class Interpolated:
    """The batch that needs 20% more than the smallest ones, by interpolation.

    Attributes:
        batch, low, high: the batch and its 95% interval; None: above the largest batch tried.
    """

    batch: float | None
    low: float | None
    high: float | None


def interpolate(cells: Sequence[Cell], level: float = OVERHEAD) -> Interpolated:
    """Return the batch at which samples are ``level`` above those of the smallest batches.

    The means are first made non-decreasing, then interpolated linearly between neighbours. The
    interval comes from means redrawn by their standard errors.
    """
    batches = np.array([cell.batch for cell in cells], dtype=np.float64)
    means = np.array([cell.mean for cell in cells])
    variance, known = variances(cells)

    def at(values: Numbers) -> float | None:
        rising = isotonic(values, 1 / variance)
        return crossing(batches, rising / rising[0] - 1, level)

    found = at(means)
    if not known:
        return Interpolated(found, None, None)
    generator = np.random.default_rng(0)
    draws = means + np.sqrt(variance) * generator.standard_normal((DRAWS, len(means)))
    drawn = sorted(math.inf if (each := at(draw)) is None else each for draw in draws)
    low, high = (drawn[int(q * (DRAWS - 1))] for q in ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return Interpolated(found, low if low < math.inf else None, high if high < math.inf else None)


def account_of_misfit(cells: Sequence[Cell], line: Line) -> str:
    """Return how the means depart from the line: a flat part and a step, or the worst batch.

    The flat part ends at the batch for which a constant followed by a line fits best.
    """
    means = np.array([cell.mean for cell in cells])
    variance, _ = variances(cells)
    whole = line.scatter * (len(cells) - 2)
    best: tuple[float, int, float] | None = None
    for count in range(2, len(cells) - 2):
        weights = 1 / variance[:count]
        level = float((weights * means[:count]).sum() / weights.sum())
        flat = float((weights * (means[:count] - level) ** 2).sum())
        *_, rest = _least_squares(cells[count:], variance[count:])
        if best is None or flat + rest < best[0]:
            best = (flat + rest, count, level)
    if best is not None and best[0] < TOLD * whole:
        _, count, level = best
        rise = means[count] / level - 1
        return (
            f"flat to batch {cells[count - 1].batch:,}, then a step: {cells[count].batch:,} needs"
            f" {rise:.0%} more"
        )
    worst = max(range(len(cells)), key=lambda index: abs(line.residuals[index]))
    off = line.residuals[worst]
    return f"batch {cells[worst].batch:,} needs {abs(off):.0%} {'more' if off > 0 else 'less'}"


def _fieller(solution: Numbers, covariance: Numbers, quantile: float) -> tuple[float, float]:
    intercept, slope = map(float, solution)
    z = quantile * quantile
    a = slope**2 - z * float(covariance[1, 1])
    b = intercept * slope - z * float(covariance[0, 1])
    c = intercept**2 - z * float(covariance[0, 0])
    if slope <= 0 or a <= 0:
        error = math.sqrt(float(covariance[1, 1]))
        raise NoHyperbola(
            "what is needed does not grow with the batch within its error (slope"
            f" {slope:.3g} +- {error:.2g}): no critical batch is to be seen up to the largest"
        )
    if intercept <= 0 or c <= 0:
        raise NoHyperbola(
            "what is needed grows in proportion to the batch: the smallest is already far above"
            " the critical one; try smaller ones"
        )
    root = math.sqrt(max(b * b - a * c, 0.0))
    return (b - root) / a, (b + root) / a
