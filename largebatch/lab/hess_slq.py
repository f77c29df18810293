"""The density of a Hessian's eigenvalues by Lanczos quadrature, against the whole matrix.

Ghorbani et al. 2019; Ubaru, Chen, Saad 2017. The lecture's histograms are of exact eigenvalues. The
quadrature also works for networks whose Hessian is too large to store.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from largebatch.lab.descent import fit
from largebatch.lab.digits import digits
from largebatch.lab.experiment import (
    Check,
    Drawing,
    Experiment,
    Findings,
    Scale,
    agreed,
    experiments,
    spread,
)
from largebatch.lab.networks import perceptron
from largebatch.lab.pictures import Series, lines
from largebatch.lab.whole_batch import WholeBatch, dense_hessian
from largebatch.optim import SGD
from largebatch.probes.hessian import Hessian
from largebatch.probes.parameter_space import ParameterSpace
from largebatch.probes.spectrum import Spectrum, quadrature

NEAR = 0.05  # of the largest eigenvalue


def density(places: Tensor, weights: Tensor, at: Tensor, width: float) -> list[float]:
    """Return a density at some points: weights, each spread as a Gaussian of this width."""
    bells = (-(((at[:, None] - places.flatten()) / width) ** 2) / 2).exp()
    share = weights.flatten() / weights.sum()
    return (bells @ share / (width * math.sqrt(2 * math.pi))).tolist()


def within(places: Tensor, weights: Tensor, reach: float) -> float:
    """Return the share of the weight that lies within ``reach`` of zero."""
    return float(weights[places.abs() < reach].sum() / weights.sum())


@experiments.register("hess-slq")
class DensityOfTheHessian(Experiment):
    """Compares moments and densities of the quadrature with those of all eigenvalues."""

    lecture = "An overview of empirical studies in NNs (Sagun)"
    claim = "at the end of training almost all eigenvalues lie close to zero"
    source = "Sagun et al. 2017; Ghorbani et al. 2019, section 2"
    minutes = 0.8

    def measure(self, scale: Scale) -> Findings:
        """Take the spectrum before and after training."""
        samples = digits("train", torch.float64, limit=scale.pick(500, 1442))
        steps, vectors = scale.pick(500, 4000), scale.pick(10, 64)
        found, gathered, apart = Findings([], []), list[float](), list[float]()
        for seed in scale.seeds:
            model = perceptron((64, 16, 10), seed, activation=nn.Tanh, dtype=torch.float64)
            space, shares = ParameterSpace(model), list[float]()
            for when in ("beginning", "end"):
                if when == "end":
                    optimizer = SGD(space.params.values(), lr=0.1)
                    fit(model, samples, optimizer, 50, steps, seed)
                values = torch.linalg.eigvalsh(dense_hessian(model, samples))
                product = Hessian(space, WholeBatch(model, samples))
                seen = quadrature(product, space, 30, vectors, 1000 * seed)
                row: dict[str, float | str] = {"seed": seed, "at": when}
                for power in (1, 2):
                    known = float((values**power).mean())
                    mean, error = seen.moment(power)
                    apart.append(abs(mean - known) / error)
                    row |= {f"tr(H^{power})/n": known, f"quadrature, {power}": mean,
                            f"error, {power}": error}  # fmt: skip
                reach = NEAR * float(values[-1])
                shares.append(within(seen.values, seen.weights, reach))
                dense = within(values, torch.ones_like(values), reach)
                found.rows.append(row | {"near zero": shares[-1], "near zero, dense": dense})
                if seed == scale.seeds[0]:
                    found.charts.append(_chart(when, values, seen))
            gathered.append(shares[1])
        found.checks += [
            Check(f"share within {NEAR:.0%} of the largest of 0, at the end", "almost all",
                  spread(gathered), agreed(share > 0.9 for share in gathered)),
            Check("tr(H)/n and tr(H^2)/n, largest distance in standard errors", "< 3",
                  f"{max(apart):.2f}", max(apart) < 3, exact=True),
        ]  # fmt: skip
        found.notes.append(
            f"Tanh perceptron 64-16-10, {space.size:,} parameters; quadrature by {vectors} vectors"
            " of 30 products each."
        )
        return found


def _chart(when: str, values: Tensor, seen: Spectrum) -> tuple[str, str, Drawing]:
    top = float(values[-1])
    at, width = torch.linspace(-0.1 * top, 1.05 * top, 400, dtype=torch.float64), 0.01 * top
    curves = [
        Series("all eigenvalues", at.tolist(), density(values, torch.ones_like(values), at, width)),
        Series(
            "quadrature", at.tolist(), density(seen.values, seen.weights, at, width), dashed=True
        ),
    ]
    note = "each eigenvalue spread by 1% of the largest"
    return f"Density at the {when}", note, lines("eigenvalue", "density", curves)
