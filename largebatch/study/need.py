"""What a target needs: samples and steps by batch, read from the record of a study."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from largebatch._errors import UserError
from largebatch.record import BenchmarkRecord, is_number, read_record
from largebatch.study.convergence import MOST_BATCH
from largebatch.study.hyperbola import OVERHEAD
from largebatch.train.keys import short

MOST = 1e24  # samples or steps
MOST_CRITICAL = 1e15
MOST_SCATTER = 10.0
NORMAL = 1.96  # half of a 95% interval


@dataclass(frozen=True)
class Need:
    """Samples to the target as a function of the batch, with errors.

    Attributes:
        samples, steps: Emin and Smin, in samples and steps.
        covariance: covariance of ``samples`` and ``steps``, (2, 2); None: not known.
        scatter: relative standard deviation of one run about the fitted line.
        least, most: smallest and largest batch of the runs behind the fit.
        freedom: degrees of freedom of ``covariance`` and ``scatter``; 0: they are known exactly.
        learning_rates: peak rate of the runs, by batch; empty: not known.
        remarks: what the numbers do not say, in words.
    """

    samples: float
    steps: float
    covariance: NDArray[np.float64] | None
    scatter: float
    least: float
    most: float
    freedom: int = 0
    learning_rates: Mapping[float, float] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def critical(self) -> float:
        """The critical batch, Emin / Smin, in samples."""
        return self.samples / self.steps

    def measured(self, batch: float) -> bool:
        """Return whether the batch lies within the batches of the runs."""
        return self.least <= batch <= self.most

    def learning_rate(self, batch: float) -> float | None:
        """Return the rate for a batch: a line through the logarithms, level beyond the runs."""
        if not self.learning_rates:
            return None
        batches, rates = np.log(sorted(self.learning_rates.items())).T
        return float(np.exp(np.interp(math.log(batch), batches, rates)))


def read_need(path: Path, task: str | None = None) -> tuple[Need, str]:
    """Read what a target needs from the record of a study; return it with the task's name.

    Branches of critical-batch go to no target. For them the target is the end of the run: the run's
    own batch needs the run's length, and the smallest B20 along the run is a fifth of the critical
    batch.

    Raises:
        UserError: the record is of another kind or damaged, or gives no critical batch.
    """
    record = read_record(path)
    try:
        if record.name == "steps-to-target":
            return _of_targets(path, record, task)
        if record.name == "critical-batch":
            return _of_branches(path, record)
    except ValueError as error:
        raise UserError(
            f"--from {path}: {error}; the study's own command writes the record again"
        ) from None
    raise UserError(
        f"--from {path}: a record of {record.name!r}; expected steps-to-target or critical-batch"
    )


def _of_targets(path: Path, record: BenchmarkRecord, task: str | None) -> tuple[Need, str]:
    tasks = {str(each.get("task")): each for each in _mappings(record.details, "tasks")}
    usable = [name for name, each in tasks.items() if each.get("line")]
    if task is not None and task not in tasks:
        raise UserError(f"--task={task}: {path} has {', '.join(tasks)}")
    if task is None and len(usable) != 1:
        raise UserError(
            f"--from {path}: {len(usable)} tasks with a critical batch"
            + (f"; name one by --task: {', '.join(usable)}" if usable else "")
        )
    name = task or usable[0]
    if name not in usable:
        raise UserError(f"--task={name}: its runs were refused: they show no critical batch")
    each = tasks[name]
    unit = _number(each, "samples", 1e-12, MOST)
    samples, steps = (unit * part for part in _numbers(each, "line", 1e-12, MOST, 2))
    if not 1 / MOST_CRITICAL <= samples / steps <= MOST_CRITICAL:
        raise ValueError(f"line={short(each['line'])}: no critical batch of {samples / steps:.2g}")
    batches = _numbers(each, "batches", 1, MOST_BATCH)
    freedom = _number({"freedom": 0, **each}, "freedom", 0, 1e9)
    if freedom != int(freedom):
        raise ValueError(f"freedom={freedom}: a whole number")
    row = next((row for row in record.rows if row.get("task") == name), {})
    doubt = "the line does not fit the runs it goes through: what follows leans on it all the same"
    return (
        Need(
            samples,
            steps,
            _covariance(each, (samples, steps), unit),
            _number(each, "scatter", 0, MOST_SCATTER),
            min(batches),
            max(batches),
            int(freedom),
            _rates(each, batches),
            (doubt,) if row.get("verdict") == "line does not fit" else (),
        ),
        name,
    )


def _of_branches(path: Path, record: BenchmarkRecord) -> tuple[Need, str]:
    details = record.details
    known = [each for each in _mappings(details, "points") if each.get("B20") is not None]
    if not known:
        raise UserError(f"--from {path}: no B20: all batches that were tried are as good")
    limits = [_number(each, "B20", OVERHEAD / MOST_CRITICAL, MOST_CRITICAL) for each in known]
    limit, point = min(zip(limits, known, strict=True), key=lambda each: each[0])
    own, critical = _number(point, "own", 1, MOST_BATCH), limit / OVERHEAD
    samples = _number(details, "total", 1, MOST) / (1 + own / critical)
    batches = [own, *_numbers(point, "batches", 1, MOST_BATCH)]
    remarks = [
        "the target is what the run that was branched off has at its end; how far whole runs"
        " scatter is not known, and no interval holds it"
    ]
    covariance = None
    if point.get("low") is None or point.get("high") is None:
        remarks.append(
            "the interval of B20 has an open end, so that hours have none by the runs' statistics;"
            " more --seeds, or --batches on both sides, close it"
        )
    else:
        low = _number(point, "low", OVERHEAD / MOST_CRITICAL, limit)
        high = _number(point, "high", limit, MOST_CRITICAL)
        # The run's own need is known: what is not is how it divides into Emin and Smin B.
        off = samples * own / (own + critical) * math.log(high / low) / (2 * NORMAL)
        covariance = np.array([[off**2, -(off**2) / own], [-(off**2) / own, (off / own) ** 2]])
    return (
        Need(
            samples,
            samples / critical,
            covariance,
            0.0,
            own,
            max(batches),
            learning_rates=_rates(point, batches),
            remarks=tuple(remarks),
        ),
        f"branches at {short(point.get('at'))}",
    )


def _covariance(
    each: Mapping[str, Any], of: tuple[float, float], unit: float
) -> NDArray[np.float64]:
    rows = each.get("covariance")
    if not isinstance(rows, list) or len(rows) != 2:
        raise ValueError(f"covariance={short(rows)}: two rows of two numbers")
    found = unit**2 * np.array([_finite("covariance", row, -MOST, MOST, 2) for row in rows])
    relative = found / np.outer(of, of)
    least = float(np.linalg.eigvalsh(relative).min())
    if not np.allclose(relative, relative.T) or least < -1e-6 or relative.max() > 1e6:
        raise ValueError(f"covariance={short(rows)}: not one of samples and steps")
    return found


def _rates(each: Mapping[str, Any], batches: Sequence[float]) -> dict[float, float]:
    """Return the rates by batch, as far as they are known; older records have none."""
    rates = each.get("learning_rates", [])
    if not isinstance(rates, list) or len(rates) not in (0, len(batches)):
        raise ValueError(f"learning_rates={short(rates)}: one for each of {len(batches)} batches")
    return {
        batch: _finite("learning_rates", [rate], 1e-12, 1e12)[0]
        for batch, rate in zip(batches, rates, strict=False)
        if rate is not None
    }


def _mappings(details: Mapping[str, Any], key: str) -> Iterator[Mapping[str, Any]]:
    found = details.get(key)
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise ValueError(f"{key}={short(found)}: a list of mappings")
    return iter(found)


def _number(each: Mapping[str, Any], key: str, low: float, high: float) -> float:
    return _finite(key, [each.get(key)], low, high)[0]


def _numbers(
    each: Mapping[str, Any], key: str, low: float, high: float, count: int | None = None
) -> list[float]:
    return _finite(key, each.get(key), low, high, count)


def _finite(key: str, found: Any, low: float, high: float, count: int | None = None) -> list[float]:
    """Return a list of numbers, or refuse it by its name."""
    if not isinstance(found, list) or not found or len(found) != (count or len(found)):
        raise ValueError(f"{key}={short(found)}: a list of {count or 'one or more'} numbers")
    for value in found:
        if not is_number(value) or not low <= value <= high:
            raise ValueError(f"{key}: {short(value)}: a number from {low:g} to {high:g}")
    return found
