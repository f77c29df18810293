"""Step time by batch and number of GPUs, fitted to measured or planned steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from largebatch._errors import UserError
from largebatch.record import BenchmarkRecord, is_number, read_record
from largebatch.study.convergence import MOST_BATCH
from largebatch.train.keys import short

OURS = "largebatch"  # of the contenders of `bench scaling`
P90 = 1.645  # normal quantile: half of what lies between p5 and p95
MOST_SPREAD = 10.0  # relative, of the windows of one step time


@dataclass(frozen=True)
class Timed:
    """One measured (or planned) step time.

    Attributes:
        ranks: number of GPUs.
        batch: samples on all GPUs together.
        seconds: seconds of a step.
        error: relative standard deviation of the seconds over windows; 0: not known.
    """

    ranks: int
    batch: int
    seconds: float
    error: float = 0.0


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step on one number of GPUs: ``batch / (ranks rate) + fixed``.

    Attributes:
        rate: samples a second of one GPU, without the fixed time.
        fixed: fixed seconds of every step.
        least, most: smallest and largest batch measured on this number of GPUs; 0: none.
        error: relative standard error of the seconds.
    """

    ranks: int
    rate: float
    fixed: float
    least: int
    most: int
    error: float

    def seconds(self, batch: float) -> float:
        """Return the seconds of a step."""
        return batch / (self.ranks * self.rate) + self.fixed

    def measured(self, batch: float) -> bool:
        """Return whether the batch lies within the measured batches."""
        return self.least <= batch <= self.most


def read_timing(path: Path) -> list[Timed]:
    """Read a record of ``bench scaling`` or of ``plan``.

    Raises:
        UserError: the file is no such record.
    """
    record = read_record(path)
    try:
        found = list(_measured(record)) or list(_planned(record))
    except ValueError as error:
        raise UserError(f"--scaling {path}: {error}; measure or plan it again") from None
    if not found:
        raise UserError(
            f"--scaling {path}: a record of {record.name!r}; expected one of largebatch bench"
            " scaling --json or of largebatch plan --json"
        )
    return found


def fit_timing(timed: Sequence[Timed], ranks: Iterable[int] = ()) -> list[StepTime]:
    """Return the step time on every timed number of GPUs, and on the numbers in ``ranks``.

    A number of GPUs with two batches or more gets a line through these batches, by least squares of
    relative errors. Other numbers get the common rate, and the fixed time of the nearest number.

    Raises:
        UserError: all steps were timed at one batch per GPU, which does not separate the rate from
            the fixed time.
    """
    by_ranks: dict[int, list[Timed]] = {}
    for each in timed:
        by_ranks.setdefault(each.ranks, []).append(each)
    lines: dict[int, StepTime] = {}
    for count, members in sorted(by_ranks.items()):
        if len({each.batch for each in members}) > 1:
            lines[count] = _line(count, members)
    if not lines:
        raise UserError(
            "--scaling: a step was timed at one batch for each number of GPUs; time two or more,"
            " so that what is fixed shows (bench scaling --batches 16 64)"
        )
    rate = float(np.median([line.rate for line in lines.values()]))
    found = []
    for count in sorted({*by_ranks, *ranks}):
        if count in lines:
            found.append(lines[count])
            continue
        near = lines[min(lines, key=lambda each: abs(math.log(each / count)))]
        batches = [each.batch for each in by_ranks.get(count, ())]
        found.append(
            StepTime(
                count,
                rate,
                near.fixed,
                min(batches, default=0),
                max(batches, default=0),
                near.error,
            )
        )
    return found


def _line(ranks: int, members: Sequence[Timed]) -> StepTime:
    batches = np.array([each.batch for each in members], dtype=np.float64)
    seconds = np.array([each.seconds for each in members])
    design = np.stack([batches, np.ones_like(batches)], axis=1) / seconds[:, None]
    slope, fixed = np.linalg.lstsq(design, np.ones_like(seconds), rcond=None)[0]
    if fixed < 0:  # noise: nothing is fixed
        slope, fixed = 1 / float(np.mean(batches / seconds)), 0.0
    if slope <= 0:
        raise UserError(
            f"--scaling: on {ranks} GPUs a step takes no longer at larger batches: time larger ones"
        )
    left = (batches * slope + fixed) / seconds - 1
    freedom = max(1, len(members) - 2)
    scatter = math.sqrt(float(np.square(left).sum()) / freedom)
    noise = float(np.mean([each.error for each in members]))
    return StepTime(
        ranks,
        float(1 / (slope * ranks)),
        float(fixed),
        int(batches.min()),
        int(batches.max()),
        max(scatter, noise),
    )


def _measured(record: BenchmarkRecord) -> Iterable[Timed]:
    for row in record.rows:
        if row.get("contender", OURS) != OURS or not is_number(row.get("images/s")):
            continue
        ranks, batch = _whole(row, "ranks"), _whole(row, "global batch")
        rate = _positive(row, "images/s")
        spread = 0.0
        if is_number(row.get("p5")) and is_number(row.get("p95")):
            spread = min(abs(row["p95"] - row["p5"]) / (2 * P90 * rate), MOST_SPREAD)
        yield Timed(ranks, batch, batch / rate, spread)


def _planned(record: BenchmarkRecord) -> Iterable[Timed]:
    rows: list[dict[str, Any]] = [row for row in record.rows if is_number(row.get("step_seconds"))]
    methods = [row.get("method") for row in rows]
    for row in rows:
        if row.get("method") == methods[-1]:  # the best for each message, which is listed last
            ranks, batch = _whole(row, "ranks"), _whole(row, "global_batch")
            yield Timed(ranks, batch, _positive(row, "step_seconds"))


def _whole(row: dict[str, Any], key: str) -> int:
    value = row.get(key)
    if not is_number(value) or not 1 <= value <= MOST_BATCH or value != int(value):
        raise ValueError(f"{key}={short(value)}: a whole number from 1 to {MOST_BATCH:,}")
    return int(value)


def _positive(row: dict[str, Any], key: str) -> float:
    value = row.get(key)
    if not is_number(value) or not 1e-12 <= value <= 1e12:
        raise ValueError(f"{key}={short(value)}: a number above 0, at most 10^12")
    return float(value)
