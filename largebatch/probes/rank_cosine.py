"""Measure how similar the ranks' gradients are, and whether one rank stands out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from largebatch._errors import UserError
from largebatch.probes.instrument import Instrument, Moment
from largebatch.probes.noise_terms import noise_terms
from largebatch.probes.registry import probes
from largebatch.processes import World
from largebatch.schedule import Clock, Duration, Every, Step

EVERY = "16st"
REMEMBERED = 64  # steps by which a rank is judged
LEAST = 8
FAR = 5.0  # standard errors
TINY = 1e-300


class RankCosine(Instrument):
    """Measures the mean cosine between the gradients of two ranks, each from its own samples.

    The mean is weighted by the products of the gradients' norms, so only the norms and the norm of
    the sum are needed. With b samples a rank the expected cosine is about 1 / (1 + noise scale /
    b). So the cosine gives the noise scale (McCandlish et al. 2018), written as
    ``rank_noise_scale``.

    A rank is named if its gradients are longer or shorter than expected from their share of the
    step, by more than five standard errors over many steps. The data of such a rank differ, or are
    damaged. This needs at least three ranks.

    Args:
        every: which steps are measured; None: each 16th.

    With one rank nothing is measured, and a message says so.

    Raises:
        UserError: the engine does not give access to each rank's own gradients.
    """

    name = "rank_cosine"
    moment = "exchanged"
    reads_squares = True

    def __init__(self, engine: Any, world: World, clock: Clock, every: Every | None = None) -> None:
        if "ranks" not in engine.apart:
            raise UserError(
                f"rank_cosine: distributed.engine={engine.name} keeps the gradients of each rank to"
                " itself; take ddp"
            )
        self.every = every or Every(Duration.parse(EVERY), clock)
        self._engine, self._world = engine, world
        self._ratios: NDArray[np.float64] = np.empty((0, world.world_size))
        self._cosine = math.nan

    def begin(self, samples: int, steps: int) -> str | None:
        """Return a message if there are no ranks to compare."""
        return "probes: rank_cosine: there is one rank" if self._world.world_size == 1 else None

    def due(self, step: Step, number: int) -> bool:
        """Return whether a step is measured."""
        return self._world.world_size > 1 and super().due(step, number)

    def measure(self, at: Moment) -> Mapping[str, Tensor]:
        """Return one row: every rank's squared norm and share, and the squared norm of the sum."""
        squares = at.squares
        assert squares is not None
        row = torch.zeros(2, self._world.world_size, dtype=torch.float64, device=squares.own.device)
        row[0, self._world.rank] = squares.own.sum()
        row[1, self._world.rank] = squares.share
        work = self._engine.sum(row)
        if work is not None:
            work.wait()
        return {"row": torch.cat((row.flatten(), squares.summed.sum().unsqueeze(0)))}

    def write(self, step: Step, number: int, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the cosine, the noise scale computed from it, and the rank that stands out."""
        row = np.asarray(values["row"])
        own, shares = row[:-1].reshape(2, -1)
        whole, parts = float(row[-1]), float(own.sum())
        products = float(np.sqrt(own).sum() ** 2) - parts
        if not np.isfinite(row).all() or products <= 0 or (shares > 0).sum() < 2:
            return {}
        self._cosine = (whole - parts) / products
        figures: dict[str, Any] = {"rank_cosine": self._cosine}
        signal, trace = (
            float(term)
            for term in noise_terms(whole, parts, 1.0, float(np.square(shares).sum()), step.size)
        )
        if signal > 0:
            figures["rank_noise_scale"] = trace / signal
        expected = np.square(shares) * signal + shares * trace / step.size
        if (shares > 0).all() and (expected > 0).all() and (own > 0).all():
            ratios = np.log(own / expected)
            self._ratios = np.vstack((self._ratios, ratios))[-REMEMBERED:]
        outlier = outlying(self._ratios)
        if outlier is not None:
            figures["rank_outlier"] = outlier[0]
        return figures

    def close(self) -> str | None:
        """Return one sentence on how similar the ranks are, and which rank differs."""
        if not self._world.is_main or math.isnan(self._cosine):
            return None
        told = f"cosine between ranks' gradients {self._cosine:.3g}"
        outlier = outlying(self._ratios)
        if outlier is not None:
            rank, factor, errors = outlier
            told += (
                f"; rank {rank} stands out: its gradients are {factor:.3g} times as long as those"
                f" of others ({errors:.0f} standard errors); look at its data"
            )
        return told

    def state(self) -> dict[str, Tensor]:
        """Return the ratios of gradient norms, step by step."""
        return {"ratios": torch.from_numpy(self._ratios.copy())}

    def check(self, state: Any) -> None:
        """Require ratios, for any number of ranks."""
        ratios = state.get("ratios") if isinstance(state, dict) else None
        if not isinstance(ratios, Tensor) or ratios.ndim != 2:
            raise ValueError("no ratios of ranks")

    def load(self, state: Any) -> None:
        """Restore ratios measured before; start anew with another number of ranks."""
        if state["ratios"].shape[1] == self._world.world_size:
            self._ratios = state["ratios"].double().numpy().copy()


def outlying(ratios: NDArray[np.float64]) -> tuple[int, float, float] | None:
    """Return the rank that stands out, its factor, and the deviation in standard errors.

    Args:
        ratios: (steps, ranks): logarithms of squared gradient norms over their expected values.

    Returns:
        None if no rank stands out, or for too few steps or ranks.
    """
    steps, ranks = ratios.shape
    if steps < LEAST or ranks < 3:
        return None
    found = []
    for rank in range(ranks):
        others = np.delete(ratios, rank, axis=1)
        apart = ratios[:, rank] - np.median(others, axis=1)
        spread = float(np.std(others - others.mean(0), ddof=1)) + float(np.std(apart, ddof=1))
        error = max(spread / math.sqrt(steps), TINY)
        found.append((abs(float(apart.mean())) / error, rank, float(apart.mean())))
    errors, rank, mean = max(found)
    return (rank, math.exp(mean / 2), errors) if errors > FAR else None


probes.register(
    "rank_cosine",
    "cosine between ranks' gradients, and the rank that stands out",
    "McCandlish et al. 2018",
)(RankCosine)
