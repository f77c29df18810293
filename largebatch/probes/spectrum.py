"""The spectrum of a live run's Hessian, by stochastic Lanczos quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from largebatch._errors import UserError
from largebatch.probes.hessian import Hessian
from largebatch.probes.instrument import Instrument, Moment
from largebatch.probes.lanczos import lanczos
from largebatch.probes.parameter_space import ParameterSpace
from largebatch.probes.registry import probes
from largebatch.processes import World
from largebatch.record import MetricsWriter, RunDirectory
from largebatch.schedule import Clock, Duration, Every, Step

STEPS_A_PRODUCT = 128  # a product takes about two steps: 2% of the time


@dataclass(frozen=True)
class Spectrum:
    """A density of eigenvalues: weights at some values, (vectors, products) each.

    The weights of each vector add up to 1. Both are float64.
    """

    values: Tensor
    weights: Tensor

    def moment(self, power: int) -> tuple[float, float]:
        """Return the mean of eigenvalues to the ``power``, and its standard error over vectors.

        With a single vector the error is infinite.
        """
        each = (self.weights * self.values**power).sum(1)
        count = len(each)
        error = float(each.std() / math.sqrt(count)) if count > 1 else math.inf
        return float(each.mean()), error


@torch.no_grad()
def quadrature(
    apply: Callable[[Tensor], Tensor],
    space: ParameterSpace,
    products: int,
    vectors: int,
    seed: int,
) -> Spectrum:
    """Return the density of a symmetric matrix's eigenvalues.

    Ubaru, Chen, Saad 2017, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature". The
    result averages Lanczos quadratures over random sign vectors. Moments up to 2 ``products`` - 1
    are exact except for the randomness of the signs.

    Raises:
        ArithmeticError: a product is not finite.
    """
    values = torch.zeros(vectors, products, dtype=torch.float64)
    weights = torch.zeros_like(values)
    for number in range(vectors):
        ritz = lanczos(apply, space.random(seed + number), products, space)
        values[number, : len(ritz.values)] = ritz.values
        weights[number, : len(ritz.values)] = ritz.weights
    return Spectrum(values, weights)


class SpectrumRecord(Instrument):
    """Writes the density of the Hessian's eigenvalues at some steps to ``spectrum.jsonl``.

    A line has ``samples``, ``step``, ``epoch``, ``values`` and ``weights``, which add up to 1. The
    metrics get the density's mean, its mean square and its ends. ``hessian_mean`` and
    ``hessian_mean_square`` are the traces of H and H^2 over the number of parameters. Source:
    Ghorbani et al. 2019, "An investigation into neural net optimization via Hessian eigenvalue
    density".

    Args:
        every: which steps are measured; None: so seldom that measuring takes about 2% of the time.
        products: number of Hessian-vector products per random vector, which is the number of values
            in a line for each vector.
        vectors: number of random sign vectors.

    Raises:
        UserError: an option out of range.
    """

    name = "spectrum"
    moment = "stepped"
    replays = True

    def __init__(
        self,
        model: nn.Module,
        world: World,
        clock: Clock,
        folder: Path,
        seed: int,
        every: Every | None = None,
        products: int = 20,
        vectors: int = 1,
    ) -> None:
        for key, value in (("products", products), ("vectors", vectors)):
            if not isinstance(value, int) or not 1 <= value <= 1000:
                raise UserError(f"{key}={value!r}: a number from 1 to 1000")
        length = STEPS_A_PRODUCT * products * vectors
        self.every = every or Every(Duration.parse(f"{length}st"), clock)
        self._space = ParameterSpace(model)
        self._products, self._vectors, self._seed = products, vectors, seed
        self._path, self._world = RunDirectory(folder).spectrum, world
        self._epoch_samples = clock.epoch_samples

    def begin(self, samples: int, steps: int) -> str | None:
        """Remove lines past ``samples``, from which the run resumes."""
        if not self._world.is_main or not self._path.exists():
            return None
        writer = MetricsWriter(self._path)
        kept = writer.truncate_after(samples)
        writer.close()
        return kept

    def measure(self, at: Moment) -> Mapping[str, Tensor]:
        """Return values and weights; nothing if a gradient is not finite."""
        replay = at.replay()
        assert replay is not None
        seed = self._seed + 1000 * at.number  # other signs each time
        try:
            product = Hessian(self._space, replay)
            found = quadrature(product, self._space, self._products, self._vectors, seed)
        except ArithmeticError:
            return {}
        return {"values": found.values, "weights": found.weights}

    def write(self, step: Step, number: int, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Append the line; return the density's moments and ends."""
        found = Spectrum(
            *(torch.tensor(values[key], dtype=torch.float64) for key in ("values", "weights"))
        )
        there = found.weights > 0
        if self._world.is_main:
            line: dict[str, Any] = {
                "split": "spectrum",
                "samples": step.end,
                "step": number,
                "epoch": round(step.end / self._epoch_samples, 6),
                "values": found.values[there].tolist(),
                "weights": (found.weights[there] / self._vectors).tolist(),
            }
            writer = MetricsWriter(self._path)
            writer.write(line)
            writer.close()
        return {
            "hessian_mean": found.moment(1)[0],
            "hessian_mean_square": found.moment(2)[0],
            "hessian_least": float(found.values[there].min()),
            "hessian_largest": float(found.values[there].max()),
        }


probes.register(
    "spectrum",
    "density of the Hessian's eigenvalues, by Lanczos quadrature",
    "Ghorbani et al. 2019",
)(SpectrumRecord)
