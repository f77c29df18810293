"""Measure the largest Hessian eigenvalues of a live run, and the distance to instability."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from largebatch._errors import UserError
from largebatch.probes.geometry import Geometry, geometry
from largebatch.probes.hessian import GaussNewton, Hessian, Product, preconditioned
from largebatch.probes.instrument import Instrument, Moment
from largebatch.probes.lanczos import Ritz, lanczos
from largebatch.probes.parameter_space import ParameterSpace
from largebatch.probes.registry import probes
from largebatch.probes.replay import Replay
from largebatch.probes.tensors import check_tensors
from largebatch.schedule import Clock, Duration, Every, Step

Matrix: TypeAlias = Literal["steps", "plain", "gauss_newton"]
MATRICES: tuple[Matrix, ...] = get_args(Matrix)

PRODUCTS = 4  # with the vectors of the measurement before to begin with
COLD = 4  # times as many products where there is none
STEPS_A_PRODUCT = 128  # a product takes about two steps: 2% of the time


class Curvature(Instrument):
    """Measures the largest eigenvalues of the Hessian of a step's loss, after the step.

    The loss is the mean over the step's batch, without weight decay, with norms as in training.
    ``curvature_times_rate`` is the largest eigenvalue in the optimizer's coordinates
    (:func:`~largebatch.probes.geometry.geometry`) times the learning rate. Above
    ``curvature_bound`` steps diverge. Training at a large batch climbs to this bound, the "edge of
    stability", and stays there (Cohen et al. 2021, 2022).

    Lanczos' method gives a lower bound of the largest eigenvalue. An eigenvalue lies within
    ``curvature_error`` of the value found. Each measurement starts from the vectors of the one
    before.

    Args:
        every: which steps are measured; None: so seldom that measuring takes about 2% of the time.
        top: number of eigenvalues.
        products: number of Hessian-vector products per measurement; the first takes four times as
            many.
        measure: which matrix. ``steps``: the Hessian in the optimizer's coordinates; ``plain``: the
            Hessian by the weights; ``gauss_newton``: the Gauss-Newton part, without the model's own
            curvature. Several are separated by commas.

    Raises:
        UserError: an option out of range.
    """

    name = "curvature"
    moment = "stepped"
    replays = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        clock: Clock,
        seed: int,
        every: Every | None = None,
        top: int = 1,
        products: int | None = None,
        measure: str = "steps",
    ) -> None:
        if not isinstance(top, int) or not 1 <= top <= 100:
            raise UserError(f"top={top!r}: a number from 1 to 100")
        self.top, self.products = top, max(PRODUCTS, 2 * top) if products is None else products
        if not isinstance(self.products, int) or self.products < max(2, top):
            raise UserError(f"products={products!r}: a number, at least 2 and at least top={top}")
        self.measures = _matrices(measure)
        length = STEPS_A_PRODUCT * self.products * len(self.measures)
        self.every = every or Every(Duration.parse(f"{length}st"), clock)
        self._optimizer, self._seed = optimizer, seed
        self._space = ParameterSpace(model)
        self._starts: dict[str, Tensor] = {}
        self._last: dict[str, float] = {}

    def measure(self, at: Moment) -> Mapping[str, Tensor]:
        """Return the figures of every matrix; none if a gradient is not finite."""
        replay, found = at.replay(), dict[str, float]()
        assert replay is not None
        of_steps = geometry(self._optimizer, self._space)
        for name in self.measures:
            try:
                found |= self._figures(name, replay, of_steps)
            except ArithmeticError:
                continue
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()}

    def _figures(self, name: Matrix, replay: Replay, of_steps: Geometry | None) -> dict[str, float]:
        space = self._space
        product: Product = (GaussNewton if name == "gauss_newton" else Hessian)(space, replay)
        root = of_steps.root if name == "steps" and of_steps is not None else None
        if root is not None:
            product = preconditioned(product, root)
        start = self._starts.get(name)
        cold = start is None
        if start is None:
            start = space.random(self._seed)
        ritz = lanczos(product, start, self.products * (COLD if cold else 1), space)
        self._starts[name] = ritz.vectors[-self.top :].sum(0)
        found: dict[str, float] = {}
        if name == "steps" and of_steps is not None:
            found["curvature_times_rate"] = float(ritz.values[-1]) * of_steps.rate
            found["curvature_bound"] = of_steps.bound
        if root is None:
            prefix = "curvature_gauss_newton" if name == "gauss_newton" else "curvature"
            values = ritz.values.flip(0)[: self.top].tolist()
            found |= {
                f"{prefix}_{number}" if number > 1 else prefix: value
                for number, value in enumerate(values, 1)
            }
            found[f"{prefix}_error"] = float(ritz.errors[-1])
            if name != "gauss_newton" and self.top > 1:
                found["gradient_in_top"] = self._share(ritz, replay)
        return found

    def _share(self, ritz: Ritz, replay: Replay) -> float:
        """Return which share of the squared gradient lies in the top eigenvectors' space.

        Gur-Ari et al. 2018, "Gradient descent happens in a tiny subspace": most of it, with as many
        vectors as there are classes.
        """
        gradient = self._space.flat(replay.gradient())
        along = self._space.dots(ritz.vectors[-self.top :], gradient)
        whole = self._space.dots(gradient, gradient)
        return float(along.square().sum() / whole) if whole > 0 else 0.0

    def write(self, step: Step, number: int, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the figures, and keep them for the summary of :meth:`close`."""
        self._last = {**self._last, **values}
        return values

    def close(self) -> str | None:
        """Return one sentence on how near the steps are to the edge of stability."""
        if "curvature_times_rate" not in self._last:
            return None
        value, bound = self._last["curvature_times_rate"], self._last["curvature_bound"]
        near = "at the edge of stability" if value > 0.9 * bound else "the rate may be larger"
        return f"curvature x rate {value:.3g}, steps diverge above {bound:.3g}: {near}"

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return the vectors that the next measurement starts from."""
        return {name: self._space.named(vector) for name, vector in self._starts.items()}

    def check(self, state: Any) -> None:
        """Require vectors that fit this model."""
        if not isinstance(state, dict) or not state.keys() <= set(MATRICES):
            raise ValueError("no vectors of a curvature")
        for vector in state.values():
            check_tensors(vector, self._space.params)

    def load(self, state: Any) -> None:
        """Restore vectors found before, on any number of ranks."""
        self._starts = {
            name: self._space.from_named(vector)
            for name, vector in state.items()
            if name in self.measures
        }


def _matrices(text: object) -> tuple[Matrix, ...]:
    names = [name.strip() for name in str(text).split(",")]
    found = tuple(matrix for matrix in MATRICES if matrix in names)
    if len(found) != len(names):
        raise UserError(f"measure={text!r}: of {', '.join(MATRICES)}, several with commas")
    return found


probes.register(
    "curvature",
    "top Hessian eigenvalues against the edge of stability",
    "Cohen et al. 2021, 2022",
)(Curvature)
