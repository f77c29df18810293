"""Choose the parts of a step that a run can measure its noise scale by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import nn

from largebatch._errors import UserError
from largebatch.nn import observable_norms, ties_ranks, ties_samples
from largebatch.processes import World
from largebatch.schedule import Schedule

Source: TypeAlias = Literal["norms", "ranks", "first", "passes", "split"]

SOURCES: dict[Source, str] = {
    "norms": "every ghost's gradients of the norms, their weights and biases alone",
    "ranks": "each rank's gradient before the exchange, all parameters",
    "first": "the first pass of a step against the whole step, all parameters",
    "passes": "every pass of a step, all parameters",
    "split": "a part of the only pass of a step, taken once more, all parameters",
}


@dataclass(frozen=True)
class Means:
    """The properties of a run that decide how its noise scale can be measured.

    Args:
        engine: the run's engine; its ``apart`` tells which parts it can measure separately.
        several: whether a rank makes several passes in some step.
        remembers: whether samples carry memory over from earlier samples (streams). Repeating them
            would start from other memory.
    """

    model: nn.Module
    engine: Any
    world: World
    several: bool
    remembers: bool = False

    def choose(self, named: str) -> Source:
        """Return the source to use.

        Args:
            named: one of :data:`SOURCES`, or ``auto``: a source for all parameters if there is one,
                without additional passes if possible.

        Raises:
            UserError: one line with the reason why the source is not available, and a remedy.
        """
        if named != "auto" and named not in SOURCES:
            raise UserError(f"source={named!r}: choose from auto, {', '.join(SOURCES)}")
        if named in SOURCES:
            refused = self.refused(named)
            if refused is not None:
                raise UserError(f"source={named}: {refused}")
            return named
        order: tuple[Source, ...] = ("ranks", "first", "split", "norms")
        whys = {source: self.refused(source) for source in order}
        for source, why in whys.items():
            if why is None:
                return source
        alone = self.world.world_size == 1 and self.engine.apart
        raise UserError(
            f"nothing to measure a noise scale by: {whys['split' if alone else 'first']}"
        )

    def refused(self, source: Source) -> str | None:
        """Return why a source is not available, None if it is."""
        if source == "norms":
            if observable_norms(self.model):
                return None
            return "no norm over ghosts that learns a weight; set norm.kind=ghost"
        name, alone = self.engine.name, self.world.world_size == 1
        can = [each for each in self.engine.apart if not alone or each != "ranks"]
        if not can:
            return (
                f"distributed.engine={name} keeps gradients to itself; take ddp, or norm.kind=ghost"
                " with source=norms"
            )
        if ties_ranks(self.model):
            return "norms tie the ranks, whose gradients are not independent; set norm.kind=ghost"
        if source == "split":
            return self._no_split()
        if source == "ranks" and alone:
            return "there is one rank; take first, split or norms"
        if source not in can:
            return f"not under distributed.engine={name}; take {' or '.join(can)}, or norms"
        if not self.several and (alone or "ranks" not in can):
            return (
                "a rank makes one pass a step; set batch.micro below its share of batch.size, or"
                f" take {'split or ' if self.splits else ''}norms"
            )
        return None

    @property
    def splits(self) -> bool:
        """Whether the only pass of a step can be split."""
        return self.refused("split") is None

    def _no_split(self) -> str | None:
        if self.world.world_size > 1:
            return "there are several ranks; take ranks, first or passes"
        if "ranks" not in self.engine.apart:
            return f"not under distributed.engine={self.engine.name}; take ddp, first or norms"
        if self.engine.scaler is not None:
            return "not under precision.compute=fp16; set batch.micro below batch.size"
        if self.remembers:
            return (
                "a stream's memory would be another the second time; set batch.micro below"
                " batch.size"
            )
        if ties_samples(self.model):
            return (
                "a batch norm ties all samples of a rank's only pass; set norm.kind=ghost, or"
                " batch.micro below batch.size"
            )
        return None


def means_of(
    model: nn.Module, engine: Any, world: World, schedule: Schedule, remembers: bool
) -> Means:
    """Collect the :class:`Means` of a run."""
    phases = schedule.plan.phases
    sizes = [*((phase.size, phase.micro) for phase in phases), (schedule.largest, phases[-1].micro)]
    shares = [(-(-size // world.world_size), micro) for size, micro in sizes]
    several = any(m == "auto" or (m is not None and m < share) for share, m in shares)
    return Means(model, engine, world, several, remembers)
