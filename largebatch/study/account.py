"""The report of `study critical-batch` for one checkpoint: table rows, notes and chart data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from largebatch.study.branches import Point, noise_of
from largebatch.study.findings import Findings
from largebatch.study.overhead import Limit, Overhead, limit_of
from largebatch.study.settings import rate_of
from largebatch.study.steps_to_target import figures
from largebatch.study.study import Done

RESOLVED = 0.05  # overhead whose window is printed
FALLING = -0.7  # correlation of loss and samples, above which there is no progress to compare


class Account:
    """The results of one checkpoint as rows and notes.

    Args:
        factors: the factors on the run's batch that were tried.
    """

    def __init__(
        self, findings: Findings, point: Point, factors: Sequence[int], done: Done
    ) -> None:
        self._findings, self._point, self._done = findings, point, done
        self._size = findings.size
        self._where = point.name.removeprefix("at-")
        self._found = findings.overheads(point, factors, done) or []
        self._plain: list[Overhead] | None = None
        if findings.key != "loss":
            self._plain = findings.overheads(point, factors, done, "loss")
        self._trend = findings.trend(point, done)
        self._idle = self._trend is not None and self._trend > FALLING
        self.limit = Limit(None, None, None) if self._idle else limit_of(self._size, self._found)
        self.detail = self._detail()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one table row per batch."""
        of_plain = {each.batch: each for each in self._plain or ()}
        for each in self._found:
            factor = each.batch // self._size
            yield {
                "at": self._where,
                "samples": self._point.samples,
                "batch": each.batch,
                "rate": figures(self._findings.rate(self._point, factor, self._done)),
                "overhead": _percent(each.mean),
                "bound": "" if each.bound is None else _percent(each.bound),
                **({"plain": _percent(of_plain[each.batch].mean)} if self._plain else {}),
                "verdict": "undecided" if self._idle else "as good" if each.passes else "worse",
            }

    def notes(self) -> Iterator[str]:
        """Yield the results in words."""
        point, found, limit, detail = self._point, self._found, self.limit, self.detail
        where = self._where
        if self._idle:
            yield (
                f"{where}: undecided: the held-out loss of the run's own batch does not fall"
                f" steadily (correlation with samples {self._trend:+.2f}, above {FALLING}), so that"
                " there is nothing to compare; branch off earlier, or take a longer --window"
            )
            return
        yield f"{where}: B20 = {limit.text()}"
        exact = self._findings.exact(point, [each.batch // self._size for each in found])
        if exact is not None:
            yield f"{where}: exactly, in expectation, B20 = {exact.text()}"
        if detail["plain B20"] is not None or self._findings.key != "loss":
            known = detail["plain B20"]
            yield f"{where}: by plain losses {'above all' if known is None else f'{known:,.4g}'}"
        for name, value, low, high in _noise_scales(detail["noise"]):
            if value is None:
                yield f"{where}: {name} above {figures(low or 0.0):,} (95%), no more is known"
                continue
            ratio = "" if limit.batch is None else f", B20 is {limit.batch / value:.2g} times it"
            between = ""
            if low is not None and high is not None:
                between = f" [{figures(low):,}, {figures(high):,}]"
            yield f"{where}: {name} {figures(value):,}{between}{ratio}"
        known = [each for each in found if each.error]
        if known:
            widest = max(known, key=lambda each: each.error or 0.0)
            error = widest.error or 0.0
            needed = self._findings.branching.window * 1.645 * error / RESOLVED
            of_set = (
                "" if widest.held is None else f" (the held-out samples alone: {widest.held:.1%})"
            )
            yield (
                f"{where}: the standard error of an overhead is {error:.1%}{of_set}; a window of"
                f" {needed:,.0f} samples would resolve {RESOLVED:.0%}"
            )
        elif len(self._findings.seeds) == 1:
            yield f"{where}: one seed, so nothing is known of errors; --seeds=2"

    def _detail(self) -> dict[str, Any]:
        """Return what the pictures show."""
        point, found, done = self._point, self._found, self._done
        first = self._findings.branching.reference(point, self._findings.seeds[0])
        curves = []
        kept = [each.batch for each in found if math.isfinite(each.mean)]  # others hide the rest
        for factor in (1, *(batch // self._size for batch in kept)):
            branch = first if factor == 1 else replace(first, factor=factor, part=1.0)
            curve = (
                None
                if self._findings.judge == "anneal"
                else self._findings.curve(branch, self._findings.key, done)
            )
            if curve is not None:
                curves.append(
                    {
                        "batch": factor * self._size,
                        "samples": curve.samples.tolist(),
                        "losses": curve.losses.tolist(),
                    }
                )
        of_plain = None if self._plain is None or self._idle else limit_of(self._size, self._plain)
        return {
            "at": self._where,
            "samples": point.samples,
            "own": self._size,
            "batches": [each.batch for each in found],
            "learning_rates": [  # of the run's own batch first
                rate_of(self._findings.config),
                *(
                    self._findings.peak_rate(point, each.batch // self._size, done)
                    for each in found
                ),
            ],
            "overheads": [each.mean for each in found],
            "bounds": [each.bound for each in found],
            "B20": self.limit.batch,
            "low": self.limit.low,
            "high": self.limit.high,
            "plain B20": None if of_plain is None else of_plain.batch,
            "curves": curves,
            # What the run itself has measured is of more steps than a branch takes.
            "noise": noise_of(point.run, point.samples) or noise_of(done[first.name()].directory),
        }


def duration(seconds: float) -> str:
    """Return a duration in words."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 119.5:  # rounded, two minutes are no longer seconds
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7170 else f"{seconds / 3600:.1f} h"


def _noise_scales(
    noise: dict[str, Any],
) -> Iterator[tuple[str, float | None, float | None, float | None]]:
    """Yield name, value and interval of the noise scale, and of what an optimizer by layers sees.

    Without a value it is only known to be above the lower end.
    """
    for key, low in noise.items():
        if key.endswith("_low") and not key.endswith("_of_set_low"):
            name = key.removesuffix("_low")
            yield name.replace("_", " "), noise.get(name), low, noise.get(f"{name}_high")


def _percent(value: float) -> str:
    return "lost" if math.isinf(value) else f"{value:+.1%}"
