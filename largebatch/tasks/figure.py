"""A figure (metric) that a task is judged by."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Figure:
    """A figure in the records, and the form in which people read it.

    Attributes:
        name: name in the records, such as ``top1`` or ``perplexity``.
        better: whether higher or lower values are better.
        percent: whether the value is a fraction of 1 that people read in percent.
    """

    name: str
    better: Literal["higher", "lower"] = "higher"
    percent: bool = False

    def text(self, value: float, digits: int = 2) -> str:
        """Return the name and the value in the form that people read.

        >>> Figure("top1", percent=True).text(0.9944), Figure("loss", "lower").text(0.25, 4)
        ('top1 99.44%', 'loss 0.2500')
        """
        shown = f"{100 * value:.{digits}f}%" if self.percent else f"{value:.{digits}f}"
        return f"{self.name} {shown}"

    def reached(self, value: float, target: float) -> bool:
        """Return whether ``value`` is as good as ``target``."""
        return value >= target if self.better == "higher" else value <= target

    def record(self) -> dict[str, Any]:
        """Return the figure as stored in records, for readers without the task."""
        return asdict(self)


LOSS = Figure("loss", "lower")
