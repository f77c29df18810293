"""How far the weights have come."""

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
    """Norm of the weights and of their way from the start, ``|w|`` and ``|w - w_0|``.

    Over all parameters (Hoffer et al. 2017, section 4, found ``|w - w_0|`` to grow with the log of
    the steps), measured at steps spaced by a constant ratio, since each is a pass over all weights.

    Args:
        measures: whether this rank does; sharded parameters are measured by all ranks together,
            of others the copy of the start is kept on rank 0 alone.
    """

    name = "weight_distance"

    def __init__(self, model: nn.Module, measures: bool = True) -> None:
        named = dict(model.named_parameters())
        self.measures = measures or any(map(is_sharded, named.values()))
        self._weights = {n: p.detach() for n, p in named.items()} if self.measures else {}
        self._start = {name: weight.clone() for name, weight in self._weights.items()}

    def due(self, step: Step, number: int) -> bool:
        """Whether a step is one of the spaced ones."""
        return number in SPACED

    def measure(self, at: Moment) -> Mapping[str, Tensor]:
        """Return ``weight_norm`` and ``weight_distance``."""
        return {f"weight_{name}": value for name, value in self.norms().items()}

    @torch.no_grad()
    def norms(self) -> dict[str, Tensor]:
        """Return ``norm`` and ``distance`` of the weights as they are, nothing where not measured.

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
        """Require weights of such a model."""
        if self.measures:
            check_tensors(state, self._start)

    def load(self, state: Any) -> None:
        """Go on measuring from the start of the run, whichever session that was in."""
        for name, tensor in self._start.items():
            tensor.copy_(part_like(state[name], tensor))
