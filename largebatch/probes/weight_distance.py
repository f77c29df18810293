"""Measure the distance of the weights from their start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from largebatch.distributed.sharding import is_sharded, part_like, whole, whole_norm
from largebatch.probes.instrument import Instrument, Moment
from largebatch.probes.tensors import check_tensors
from largebatch.schedule import Step

SPACING = 1.2  # ratio of the steps at which weights are measured: distances go with log steps
SPACED = frozenset(round(SPACING**power) for power in range(256))


class WeightDistance(Instrument):
    """Measures the weights' norm and their distance from the start, ``|w|`` and ``|w - w_0|``.

    The norms are over all parameters. Hoffer et al. 2017, section 4, found that ``|w - w_0|`` grows
    with the log of the steps. Each measurement is a pass over all weights, so measured steps are
    spaced by a constant ratio.

    Args:
        measures: whether this rank measures. Sharded parameters are measured by all ranks together.
            Otherwise only rank 0 measures and keeps a copy of the start.
    """

    name = "weight_distance"

    def __init__(self, model: nn.Module, measures: bool = True) -> None:
        named = dict(model.named_parameters())
        self.measures = measures or any(map(is_sharded, named.values()))
        self._weights = {n: p.detach() for n, p in named.items()} if self.measures else {}
        self._start = {name: weight.clone() for name, weight in self._weights.items()}

    def due(self, step: Step, number: int) -> bool:
        """Return whether a step is one of the measured steps."""
        return number in SPACED

    def measure(self, at: Moment) -> Mapping[str, Tensor]:
        """Return ``weight_norm`` and ``weight_distance``."""
        return {f"weight_{name}": value for name, value in self.norms().items()}

    @torch.no_grad()
    def norms(self) -> dict[str, Tensor]:
        """Return ``norm`` and ``distance`` of the weights; nothing on ranks that do not measure.

        Every rank must call it.
        """
        if not self.measures:
            return {}
        weights, start = list(self._weights.values()), list(self._start.values())
        moved = torch._foreach_sub(weights, start)
        return {"norm": whole_norm(weights), "distance": whole_norm(moved)}

    def state(self) -> dict[str, Tensor] | None:
        """Return the weights at the start of the run, in whole tensors."""
        return whole(self._start) if self.measures else None

    def check(self, state: Any) -> None:
        """Require weights that fit this model."""
        if self.measures:
            check_tensors(state, self._start)

    def load(self, state: Any) -> None:
        """Restore the weights at the start of the run, from which a resumed run measures."""
        for name, tensor in self._start.items():
            tensor.copy_(part_like(state[name], tensor))
