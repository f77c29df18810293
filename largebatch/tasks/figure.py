"""The figure a task is judged by."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Figure:
    """A number of the records, and how people read it.

    Attributes:
        name: in the records, such as ``top1`` or ``perplexity``.
        better: which of two values is the better one.
        percent: whether it is a fraction of 1 that people read in percent.
    """

    name: str
    better: Literal["higher", "lower"] = "higher"
    percent: bool = False

    def text(self, value: float, digits: int = 2) -> str:
        """Return the name and the value as people read it.

        >>> Figure("top1", percent=True).text(0.9944), Figure("loss", "lower").text(0.25, 4)
        ('top1 99.44%', 'loss 0.2500')
        """
        shown = f"{100 * value:.{digits}f}%" if self.percent else f"{value:.{digits}f}"
        return f"{self.name} {shown}"

    def reached(self, value: float, target: float) -> bool:
        """Return whether ``value`` is as good as ``target``."""
        return value >= target if self.better == "higher" else value <= target

    def record(self) -> dict[str, Any]:
        """Return it as the records hold it, for those who read them without the task."""
        return asdict(self)


LOSS = Figure("loss", "lower")
