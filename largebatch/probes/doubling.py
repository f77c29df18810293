"""Measure the gain of the last doubling of the batch, for any optimizer and any noise."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from largebatch._errors import UserError
from largebatch.nn import ties_samples
from largebatch.probes.directions import Direction, Gradient, direction_of
from largebatch.probes.instrument import Instrument, Moment
from largebatch.probes.noise_estimate import NoiseEstimate
from largebatch.probes.noise_record import NoiseRecord
from largebatch.probes.registry import probes
from largebatch.processes import World
from largebatch.schedule import Clock, Duration, Every, Step

EVERY, HALF_LIFE, PARTS = "128st", "10%", 4  # two and a half steps: 2% of the time


def control_terms(quarters: Sequence[Gradient], direction: Direction) -> tuple[Tensor, Tensor]:
    """Return estimates of U(B / 4) and U(B / 2) from the four quarters of a step of B samples.

    ``U(b) = <G, E p(g_b)>`` measures how well the direction p of a batch of b samples follows the
    true gradient G. At the best rate a step gains U^2. The mean of <g_j, p(g_i)> over parts without
    a common sample estimates U without bias for any p, and needs no model of the noise. If a step's
    progress is 1 / (1 + noise scale / b), then U(2 b)^2 / U(b)^2 - 1 is 1 far below the noise
    scale, 1/3 at the noise scale, and 0 far above.

    Args:
        quarters: the mean gradient of each quarter, a list of tensors.
        direction: p; must return directions of a fixed length.
    """

    def along(one: Gradient, other: list[Tensor]) -> Tensor:
        return torch.stack(
            [(g * p).sum(dtype=torch.float64) for g, p in zip(one, other, strict=True)]
        ).sum()

    small, large = [], []
    for i, quarter in enumerate(quarters):
        p = direction(quarter)
        small += [along(other, p) for j, other in enumerate(quarters) if j != i]
    for a, b in itertools.combinations(range(PARTS), 2):
        c, d = sorted({*range(PARTS)} - {a, b})
        half = [(g + h) / 2 for g, h in zip(quarters[a], quarters[b], strict=True)]
        rest = [(g + h) / 2 for g, h in zip(quarters[c], quarters[d], strict=True)]
        large.append(along(rest, direction(half)))
    return torch.stack(small).mean(), torch.stack(large).mean()


def gain(ratio: NoiseEstimate) -> tuple[float, float, float]:
    """Return U(B/2)^2 / U(B/4)^2 - 1 and its bounds, from the ratio of U(B/2) and U(B/4)."""
    return ratio.value**2 - 1, ratio.low**2 - 1, ratio.high**2 - 1


class Doubling(Instrument):
    """Measures the gain of the last doubling of the batch: 1 is a full doubling, 0 is nothing.

    The instrument compares the gradients of the four quarters of a step. If a rank makes at least
    four passes, a quarter is a quarter of the passes, at the cost of four copies of the gradients.
    Otherwise a pass is divided, at the cost of one and a half more passes. All ranks' quarters are
    added up.

    Args:
        every: which steps are measured; None: each 128th, about 2% of the time.
        half_life: half-life of the weight of measured steps in the estimate.

    Raises:
        UserError: the run's steps cannot be divided into quarters.
    """

    name = "doubling"
    moment = "gradients"

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        engine: Any,
        world: World,
        clock: Clock,
        task: Any,
        every: Every | None = None,
        half_life: str = HALF_LIFE,
    ) -> None:
        self.every = every or Every(Duration.parse(EVERY), clock)
        self._model, self._engine, self._world = model, engine, world
        self._params = [p for group in optimizer.param_groups for p in group["params"]]
        self._direction = direction_of(optimizer, self._params)
        kept = Duration.parse(half_life).samples(clock)
        self.record = NoiseRecord(1, max(kept, 1))
        self._whole = (
            task.carry() is None
            and not ties_samples(model)
            and not any(
                isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in model.modules()
            )
        )
        self._prefixes: list[list[Tensor]] = []
        self._handle: Any = None
        if not engine.own_gradients:
            raise UserError("needs each rank's own gradients; take distributed.engine=ddp")

    def before(self, at: Moment) -> None:
        """Arrange to copy the accumulated gradients after each quarter of the passes."""
        self._prefixes, passed = [], 0
        passes = len(at.parts)
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        if passes < PARTS:
            return
        ends = [round(passes * k / PARTS) for k in (1, 2, 3)]

        def entered(*_: Any) -> None:
            nonlocal passed
            if passed == passes:  # SAM's second time: the gradient that is stepped along counts
                self._prefixes, passed = [], 0
            if passed in ends:
                self._prefixes.append(self._now())
            passed += 1

        self._handle = self._model.register_forward_pre_hook(entered)

    def measure(self, at: Moment) -> Mapping[str, Tensor]:
        """Return U(B / 4) and U(B / 2) of the step; nothing if the quarters differ in size."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        sizes, own = at.parts, sum(at.parts)
        if len(sizes) >= PARTS:
            ends = [sum(sizes[: round(len(sizes) * k / PARTS)]) for k in range(PARTS + 1)]
        else:
            ends = [own * k // PARTS for k in range(PARTS + 1)]
            self._prefixes = self._heads(at, ends)
        sizes_of = {b - a for a, b in itertools.pairwise(ends)}
        if not self._all(len(self._prefixes) == PARTS - 1 and len(sizes_of) == 1):
            self._prefixes = []
            return {}
        # Of the loss divided by the step's weight: sums over quarters are means times a quarter.
        sums = [[torch.zeros_like(p) for p in self._params], *self._prefixes, self._now()]
        self._prefixes = []
        quarters = [
            [(b - a) * PARTS for a, b in zip(one, other, strict=True)]
            for one, other in itertools.pairwise(sums)
        ]
        if not self._engine.alone:
            flat = torch.cat([g.flatten() for quarter in quarters for g in quarter])
            work = self._engine.sum(flat)
            if work is not None:
                work.wait()
            like = [g for quarter in quarters for g in quarter]
            split = flat.split([g.numel() for g in like])
            whole = [part.view_as(g) for part, g in zip(split, like, strict=True)]
            count = len(self._params)
            quarters = [whole[k * count : (k + 1) * count] for k in range(PARTS)]
        return {"row": torch.stack(control_terms(quarters, self._direction))}

    def _all(self, alike: bool) -> bool:
        """Whether every rank has quarters that are alike."""
        if self._engine.alone:
            return alike
        count = torch.tensor(float(alike), dtype=torch.float64, device=self._params[0].device)
        self._engine.sum(count).wait()
        return int(count) == self._world.world_size

    @torch.no_grad()
    def _now(self) -> list[Tensor]:
        """Return a copy of what has accumulated, without the loss scale."""
        scale = self._engine.scale_now()
        return [
            torch.zeros_like(p)
            if p.grad is None
            else p.grad.clone()
            if scale is None
            else p.grad / scale
            for p in self._params
        ]

    def _heads(self, at: Moment, ends: Sequence[int]) -> list[list[Tensor]]:
        """Take the first quarter, half and three quarters of the only pass once more."""
        batch = at.batch()
        if batch is None or len(at.parts) != 1 or not self._whole or len(batch) != ends[-1]:
            return []
        found = []
        for end in ends[1:-1]:
            ghosts = int(np.searchsorted(np.cumsum(batch.ghosts), end)) + 1
            head = batch.head(ghosts)
            if len(head) != end:
                return []
            with torch.enable_grad():
                grads = torch.autograd.grad(at.loss(head), self._params, allow_unused=True)
            share = end / at.step.size
            found.append(
                [
                    torch.zeros_like(p) if g is None else g * share
                    for p, g in zip(self._params, grads, strict=True)
                ]
            )
        return found

    def write(self, step: Step, number: int, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Record a step; return the gain of the last doubling with its interval."""
        small, large = values["row"]
        if not np.isfinite([small, large]).all():
            return {}
        self.record.add(step.end, np.array([small]), np.array([large]))
        found = self.record.estimate()
        if found is None or not found.bounded:
            return {}
        value, low, high = gain(found)
        return {
            "doubling_gain": value,
            "doubling_gain_low": low,
            "doubling_gain_high": high,
            "doubling_from": step.size // PARTS,
        }

    def close(self) -> str | None:
        """Return one sentence on the gain of the last doubling, or on the steps still missing."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        if not self._world.is_main or not self.record.samples:
            return None
        found = self.record.estimate()
        if found is None or not found.bounded:
            wanted = 8 if found is None else found.wanted
            more = max(int(wanted - self.record.steps), 1)
            return f"doubling: not known yet; about {more:,} more measurements"
        value, low, high = gain(found)
        return (
            "the last doubling of the batch that was measured, from a quarter of a step to half of"
            f" one, gained {value:.0%} +- {(high - low) / 2:.0%} of a doubling"
        )

    def state(self) -> dict[str, Tensor]:
        """Return the terms measured so far."""
        return self.record.state()

    def check(self, state: Any) -> None:
        """Require terms of steps, as :meth:`state` returns."""
        self.record.check(state)

    def load(self, state: Any) -> None:
        """Restore terms measured before."""
        self.record.load(state)


probes.register(
    "doubling",
    "what the last doubling of the batch gained, for any optimizer",
    "McCandlish et al. 2018; unbiased by two parts that share no sample",
)(Doubling)
