"""The interface of an experiment: a claim, its measurement, and a verdict."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, TypeVar

from largebatch._registry import Facts, Registry

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

T = TypeVar("T")

Drawing: TypeAlias = "Callable[[], Figure]"
"""Draws a plotly figure when it is asked to, so that measuring needs no plotly."""


@dataclass(frozen=True)
class Check:
    """One figure of a claim, beside the measured figure.

    Attributes:
        what: the compared quantity, in words.
        claimed: the lecture's or the paper's figure or order.
        measured: our figure, with an interval or the range over seeds.
        holds: whether our figure agrees with the claim; None: these seeds cannot tell.
        exact: an identity of the algorithm, which tests assert; else an empirical claim.
    """

    what: str
    claimed: str
    measured: str
    holds: bool | None
    exact: bool = False


@dataclass(frozen=True)
class Scale:
    """The size of an experiment: seconds or minutes, and a seed for each repetition."""

    quick: bool
    seeds: Sequence[int]

    def pick(self, quick: T, full: T) -> T:
        """Return ``quick`` if the experiment should take seconds, else ``full``."""
        return quick if self.quick else full


@dataclass
class Findings:
    """The results of an experiment."""

    checks: list[Check]  # the claim, figure by figure
    rows: list[dict[str, Any]]  # the table
    charts: list[tuple[str, str, Drawing]] = field(default_factory=list)  # title, note, drawing
    notes: list[str] = field(default_factory=list)  # what a reader must know to judge the figures

    def verdict(self, seeds: int) -> str:
        """Return "as claimed", "not as claimed" or that so many seeds cannot tell."""
        said = {check.holds for check in self.checks}
        if False in said:
            return "not as claimed"
        return (
            f"cannot tell with {seeds} seed{'s' * (seeds != 1)}" if None in said else "as claimed"
        )


class Experiment(ABC):
    """A lecture's experiment: a file of its own, registered in :data:`experiments`."""

    lecture: ClassVar[str]  # its title, and the speaker
    claim: ClassVar[str]  # the slide's words, short
    source: ClassVar[str]  # the paper behind the slide, and its section
    minutes: ClassVar[float]  # of a full measurement on two cores
    seeds: ClassVar[int] = 3  # of a full measurement

    @abstractmethod
    def measure(self, scale: Scale) -> Findings:
        """Run it. The same scale gives the same results; no download, no file left behind."""


class Hall(Registry[type[Experiment], Facts]):
    """The experiments by name, each described by its own claim and source."""

    def register(
        self, name: str, summary: str = "", source: str = "", facts: Facts | None = None
    ) -> Callable[[type[Experiment]], type[Experiment]]:
        """Return a decorator that registers a class under ``name``."""
        enter = super().register

        def with_claim(experiment: type[Experiment]) -> type[Experiment]:
            words = (summary or experiment.claim, source or experiment.source)
            return enter(name, *words, facts)(experiment)

        return with_claim


experiments = Hall("lab", lambda _: Facts(), importable=True)


def agreed(holds: Iterable[bool]) -> bool | None:
    """Return the common answer of the seeds; None if they differ or there are none."""
    said = set(holds)
    return said.pop() if len(said) == 1 else None


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Return the mean with the range: "0.554 (0.551 to 0.556)"; "none" of no values."""
    if not values:
        return "none"
    figures = (sum(values) / len(values), min(values), max(values))
    mean, low, high = (f"{round(figure, 12):.{digits}g}" for figure in figures)
    return mean if low == high else f"{mean} ({low} to {high})"
