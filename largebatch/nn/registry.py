"""The registry of normalisations, from which ``norm.kind`` chooses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn

from largebatch._registry import Facts, Registry
from largebatch.nn.config import NormConfig

NormFactory = Callable[[int, NormConfig], nn.Module]
"""``(num_features, config) -> module`` that takes the place of one batch norm."""


@dataclass(frozen=True)
class NormFacts(Facts):
    """Facts about a kind of normalisation that the rest of the package needs.

    Attributes:
        ghosts: it takes its statistics over ghost batches: ``norm.ghost_size``, ``norm.running``.
        spans: whether several ranks hold a ghost together: never, if ``norm.sync_ranks`` is set
            (``asked``), or always.
        per_sample: it takes no statistics over samples.
        per_forward: its statistics are those of a whole forward pass, so micro-batches change
            results.
        weights: it normalises the weights in place of activations.
        own: the key of section ``norm`` that only this kind uses.
    """

    ghosts: bool = False
    spans: Literal["never", "asked", "always"] = "never"
    per_sample: bool = False
    per_forward: bool = False
    weights: bool = False
    own: str | None = None

    def words(self) -> Iterator[str]:
        """Yield the facts, one short line each."""
        if self.ghosts:
            yield "statistics over ghost batches: norm.ghost_size, norm.running"
        if self.spans != "never":
            when = "always" if self.spans == "always" else "with norm.sync_ranks"
            yield f"ranks hold a ghost together: {when}"
        if self.per_sample:
            yield "no statistics over samples"
        if self.per_forward:
            yield "statistics of each forward pass: ranks and batch.micro change the run"
        if self.weights:
            yield "normalises weights, not activations"
        if self.own is not None:
            yield f"key of its own: norm.{self.own}"


norms: Registry[NormFactory, NormFacts] = Registry("norm.kind", lambda _: NormFacts())


def unused_keys(kind: str) -> dict[str, object]:
    """Return the keys of section ``norm`` without effect for a kind, with their unset values."""
    facts = norms.entry(kind).facts
    unused: dict[str, object] = {e.facts.own: None for e in norms if e.facts.own is not None}
    unused.pop(facts.own or "", None)
    if facts.spans == "never":
        unused["sync_ranks"] = None
    if not facts.ghosts:
        unused |= {"ghost_size": None, "running": NormConfig.running}
    if facts.per_sample:
        unused["momentum"] = unused["half_life"] = None
    return unused
