"""The meaning of a run's figures, read from the record of its task as untrusted data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from largebatch.record import RunDirectory

MOST_FIGURES = 100
LONGEST_NAME = 80
LABELS = {"top1": "top-1", "top5": "top-5"}
TITLES = {"top1": "Top-1 accuracy", "top5": "Top-5 accuracy"}


@dataclass(frozen=True)
class Figure:
    """A figure that a task is judged by, and its usual form.

    Args:
        name: name in metrics.jsonl.
        better: ``higher`` or ``lower``.
        percent: whether the value is a fraction of 1 that people read in percent.
    """

    name: str
    better: str
    percent: bool = False

    @property
    def label(self) -> str:
        """The figure's name in tables."""
        return LABELS.get(self.name, words(self.name))

    @property
    def title(self) -> str:
        """The figure's name above a chart."""
        return TITLES.get(self.name, title(self.name))

    def text(self, value: float) -> str:
        """Return ``value`` in the form that people read."""
        return format(value, ".2%" if self.percent else ".4g")

    def best(self, values: Iterable[float]) -> float:
        """Return the best of some values."""
        return max(values) if self.better == "higher" else min(values)


LOSS = Figure("loss", "lower")
TOP1, TOP5 = (Figure(name, "higher", percent=True) for name in ("top1", "top5"))


@dataclass(frozen=True)
class Judged:
    """The figures that a run is judged by.

    Args:
        headline: the main figure.
        figures: all of them by name, the headline and the loss first.
        told: whether the run's own record names the figures; runs without ``task.json`` do not.
    """

    headline: Figure
    figures: dict[str, Figure]
    told: bool


def read_judged(
    directory: RunDirectory, evaluations: list[dict[str, Any]], remarks: list[str]
) -> Judged:
    """Read the figures that a run is judged by.

    Without a record: top-1 in percent, if validation lines have this figure, else the loss.

    Args:
        evaluations: the run's validation lines.
        remarks: list to which messages about omitted parts of the record are added.

    Raises:
        UserError: the record is damaged.
    """
    record = directory.read_task()
    labelled = any(TOP1.name in line for line in evaluations)
    before = TOP1 if labelled else LOSS
    if record is None:
        return Judged(before, by_name([before, LOSS, TOP1, TOP5]), told=False)
    wrong: list[str] = []
    found = record.get("headline")
    headline = _figure(found.get("name") if isinstance(found, dict) else None, found)
    if headline is None:
        wrong.append("headline")
        headline = before
    named = record.get("figures", {})
    if not isinstance(named, dict):
        wrong.append("figures")
        named = {}
    figures = {name: _figure(name, each) for name, each in list(named.items())[:MOST_FIGURES]}
    wrong += [f"figure {name[:LONGEST_NAME]!r}" for name, each in figures.items() if each is None]
    if len(named) > MOST_FIGURES:
        wrong.append(f"{len(named) - MOST_FIGURES:,} figures past the first {MOST_FIGURES}")
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        remarks.append(f"{directory.task.name}: left out as damaged: {', '.join(wrong[:5])}{more}")
    loss = figures.get(LOSS.name) or LOSS
    known = [headline, loss, *(figure for figure in figures.values() if figure is not None)]
    return Judged(headline, by_name(known), told=True)


def by_name(figures: Iterable[Figure]) -> dict[str, Figure]:
    """Return figures by name in order, the first of each."""
    named: dict[str, Figure] = {}
    for figure in figures:
        named.setdefault(figure.name, figure)
    return named


def title(key: str) -> str:
    """Return a key of metrics.jsonl in the form of a chart's title."""
    shown = words(key)
    return shown[:1].upper() + shown[1:]


def words(key: str) -> str:
    """Return a key of metrics.jsonl as words, of bounded length."""
    whole = key.replace("_", " ")
    return whole if len(whole) <= LONGEST_NAME else f"{whole[: LONGEST_NAME - 1]}…"


def _figure(name: Any, record: Any) -> Figure | None:
    """Return the figure that a record describes, or None where it describes none."""
    if not isinstance(record, dict) or not isinstance(name, str):
        return None
    better, percent = record.get("better"), record.get("percent", False)
    whole = 0 < len(name) <= LONGEST_NAME and isinstance(percent, bool)
    if not whole or better not in ("higher", "lower"):
        return None
    return Figure(name, better, percent)
