"""The tail index of gradient noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from largebatch._errors import UserError
from largebatch.nn import ties_ranks, ties_samples
from largebatch.probes.instrument import Instrument, Moment
from largebatch.probes.registry import probes
from largebatch.schedule import Clock, Duration, Every, Step

EVERY = "96st"  # half of a pass and all of it, one and a half of a step: 2% of the time
LEAST = 100  # numbers to take an index of


def log_sums(noise: Tensor) -> tuple[Tensor, int]:
    """Return the difference of mean logarithms for the tail index, and the block size.

    For independent symmetric alpha-stable x, the mean of log |sum over a block of m| minus the mean
    of log |x| is log(m) / alpha (Mohammadi, Mohammadpour, Ogata 2015, corollary 2.4).

    Args:
        noise: (n,); zeros, such as those of inactive units, are left out. m is the root of n.
    """
    values = noise[noise != 0].double()
    size = math.isqrt(len(values))
    if size < math.isqrt(LEAST):
        return torch.full((), math.nan, dtype=torch.float64), size
    sums = values[: len(values) // size * size].view(-1, size).sum(1)
    sums = sums[sums != 0]
    return sums.abs().log().mean() - values.abs().log().mean(), size


def tail_index(noise: Tensor) -> float:
    """Return alpha of (n,) draws: 2 for a Gaussian, 1 for a Cauchy distribution.

    The estimate is right for stable distributions only. For other distributions with a variance it
    is below 2 however many draws there are: 1.8 for Student's with 3 degrees of freedom or for
    Laplace's. So a value below 2 does not prove heavy tails.
    """
    difference, size = log_sums(noise)
    return math.log(size) / float(difference)


class TailIndex(Instrument):
    """Measures ``tail_index`` of the gradient noise, entries of all tensors together.

    Simsekli et al. 2019, "A tail-index analysis of stochastic gradient noise": 2 means Gaussian.
    The noise is the difference between the gradients of a pass's first half and of the whole pass,
    which has the same tails. The result is a mean over ranks. See :func:`tail_index` for the limits
    of the estimate.

    Args:
        every: which steps are measured; None: each 96th.

    Raises:
        UserError: a pass cannot be divided.
    """

    name = "tail_index"
    moment = "exchanged"

    def __init__(
        self, model: nn.Module, engine: Any, clock: Clock, every: Every | None = None
    ) -> None:
        if "ranks" not in engine.apart:
            raise UserError(
                f"tail_index: not under distributed.engine={engine.name}, which keeps gradients to"
                " itself; take ddp"
            )
        if ties_samples(model) or ties_ranks(model):
            raise UserError(
                "tail_index: a batch norm ties the samples of a pass; set norm.kind=ghost, or a"
                " norm of single samples"
            )
        self.every = every or Every(Duration.parse(EVERY), clock)
        self._params = [p for p in model.parameters() if p.requires_grad]
        self._engine = engine

    def measure(self, at: Moment) -> Mapping[str, Tensor]:
        """Return the sum over ranks of the ratios that make the index, and their number."""
        row = torch.zeros(2, dtype=torch.float64, device=self._params[0].device)
        batch = at.batch()
        if batch is not None and len(batch.ghosts) > 1:
            parts = (batch.head(len(batch.ghosts) // 2), batch)
            with torch.enable_grad():
                grads = [
                    torch.autograd.grad(at.loss(part), self._params, allow_unused=True)
                    for part in parts
                ]
            noise = [
                (a - b).flatten()
                for a, b in zip(*grads, strict=True)
                if a is not None and b is not None
            ]
            difference, size = log_sums(torch.cat(noise))
            ratio = difference.to(row.device) / math.log(max(size, 2))
            row = torch.stack((ratio.nan_to_num(0.0), ratio.isfinite().double()))
        work = self._engine.sum(row)
        if work is not None:
            work.wait()
        return {"row": row}

    def write(self, step: Step, number: int, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the index."""
        total, count = values["row"]
        return {"tail_index": count / total} if count and total > 0 else {}


probes.register(
    "tail_index",
    "tail index of gradient noise: 2 of a Gaussian, lower of heavy tails",
    "Simsekli et al. 2019",
)(TailIndex)
