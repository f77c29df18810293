"""The Hessian's eigenvalues at the beginning and at the end of training: a bulk, and outliers.

Sagun et al. 2017, "Empirical analysis of the Hessian of over-parametrized neural networks": most
eigenvalues gather at zero, and some stand out, about as many as there are classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from largebatch.lab.descent import accuracy, fit
from largebatch.lab.digits import digits
from largebatch.lab.experiment import (
    Check,
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
from largebatch.probes.lanczos import lanczos
from largebatch.probes.parameter_space import ParameterSpace

CLASSES, TOP = 10, 5
NEAR = 0.01  # of the largest eigenvalue: what counts as zero


def outliers(values: Tensor) -> int:
    """Return how many of the largest eigenvalues stand above the widest gap in their logarithms.

    Gaps from half the number of classes to three times it are looked at: those among the very
    largest part outliers from each other.
    """
    first = CLASSES // 2
    largest = values.flip(0)[first - 1 : 3 * CLASSES + 1].clamp(min=1e-12).log()
    return int((largest[:-1] - largest[1:]).argmax()) + first


@experiments.register("hess-top")
class TopOfTheHessian(Experiment):
    """Takes a perceptron's whole Hessian, and its top by Lanczos' method as in a live run."""

    lecture = "An overview of empirical studies in NNs (Sagun)"
    claim = "eigenvalues of the Hessian: most near zero at the end, and some large outliers"
    source = "Sagun et al. 2017, section 3"
    minutes = 0.3

    def measure(self, scale: Scale) -> Findings:
        """Compare the top five with a dense eigendecomposition, and count zeros and outliers."""
        samples = digits("train", torch.float64, limit=scale.pick(500, 1442))
        steps = scale.pick(500, 4000)
        found, errors = Findings([], []), list[float]()
        series, ends = list[Series](), list[tuple[Tensor, Tensor]]()
        for seed in scale.seeds:
            model, moments = (
                perceptron((64, 16, 10), seed, activation=nn.Tanh, dtype=torch.float64),
                list[Tensor](),
            )
            for when in ("beginning", "end"):
                if when == "end":
                    optimizer = SGD(model.parameters(), lr=0.1)
                    fit(model, samples, optimizer, 50, steps, seed)
                values = torch.linalg.eigvalsh(dense_hessian(model, samples))
                space = ParameterSpace(model)
                product = Hessian(space, WholeBatch(model, samples))
                top = lanczos(product, space.random(seed), 80, space).values[-TOP:]
                errors.append(float(((top - values[-TOP:]) / values[-TOP:]).abs().max()))
                moments.append(values)
                near = float((values.abs() < NEAR * values[-1]).double().mean())
                found.rows.append(
                    {"seed": seed, "at": when, "accuracy": round(accuracy(model, samples), 4),
                     "largest": float(values[-1]), "least": float(values[0]),
                     "near zero": round(near, 4), "outliers": outliers(values)}
                )  # fmt: skip
                if seed == scale.seeds[0]:
                    ranks = list(range(1, len(values) + 1))
                    series.append(Series(when, ranks, values.flip(0).clamp(min=1e-8).tolist()))
            ends.append((moments[0], moments[1]))
        near_ends = [row["near zero"] for row in found.rows if row["at"] == "end"]
        counts = [row["outliers"] for row in found.rows if row["at"] == "end"]
        negative = [float(-end[0] / end[-1]) for _, end in ends]
        found.checks += [
            Check(f"share of eigenvalues within {NEAR:.0%} of the largest of 0, at the end",
                  "over half", spread(near_ends), agreed(share > 0.5 for share in near_ends)),
            Check("outliers at the end", f"about {CLASSES}, the classes (within 3)", spread(counts),
                  agreed(abs(count - CLASSES) <= 3 for count in counts)),
            Check("the most negative over the largest, at the end", "small", spread(negative),
                  agreed(share < 0.05 for share in negative)),
            Check(f"top {TOP} by Lanczos against all eigenvalues, relative error", "< 1e-4",
                  f"{max(errors):.1e}", max(errors) < 1e-4, exact=True),
        ]  # fmt: skip
        found.charts.append(
            ("Eigenvalues by rank", f"seed {scale.seeds[0]}; cut off at 1e-8",
             lines("rank", "eigenvalue", series, log="xy"))
        )  # fmt: skip
        size = len(ends[0][0])
        found.notes.append(
            f"Tanh perceptron 64-16-10, {size:,} parameters, {len(samples[1])} digits; SGD of rate"
            f" 0.1, batch 50, {steps} steps. Outliers are those above the widest gap, on a"
            f" logarithmic scale, from the {CLASSES // 2}th to the {3 * CLASSES}th."
        )
        return found
