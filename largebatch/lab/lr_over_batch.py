"""The ratio of rate to batch, not the batch alone, decides how wide a minimum SGD ends in.

Jastrzebski et al. 2018: w' = w - e g + (e / sqrt(S)) noise depends on e / S as a stochastic
differential equation; endpoints of equal e / S have equal curvature, larger e / S smaller.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from largebatch.lab.descent import fit
from largebatch.lab.digits import Samples, drawn_digits
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
from largebatch.lab.whole_batch import dense_hessian
from largebatch.optim import SGD
from largebatch.probes.lanczos import lanczos
from largebatch.probes.parameter_space import ParameterSpace

SETTINGS = ((0.02, 16), (0.04, 32), (0.08, 64), (0.08, 16), (0.16, 32), (0.32, 64))
TRAIN = 512


def top_eigenvalue(model: nn.Module, samples: Samples, products: int = 20) -> float:
    """Return the largest eigenvalue of the training loss's Hessian, by Lanczos."""
    space = ParameterSpace(model)
    parameters = list(model.parameters())
    loss = nn.functional.cross_entropy(model(samples[0]), samples[1])
    slope = torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, parameters, create_graph=True)]
    )

    @torch.enable_grad()
    def product(vector: Tensor) -> Tensor:
        return space.flat(torch.autograd.grad(slope @ vector, parameters, retain_graph=True))

    start = torch.randn(space.size, generator=torch.Generator().manual_seed(0), dtype=slope.dtype)
    return float(lanczos(product, start, products, space).values[-1])


@experiments.register("jastr")
class RateOverBatch(Experiment):
    """Trains at two values of rate over batch, three batches each, and measures the curvature."""

    lecture = "An overview of empirical studies in NNs (Sagun)"
    claim = "w' = w - e g + (e / sqrt(S)) noise: LB -> sharp, SB -> wide, through e / S"
    source = "Jastrzebski et al. 2018"
    minutes = 0.3

    def measure(self, scale: Scale) -> Findings:
        """Compare largest eigenvalues after equally many epochs."""
        epochs, double = scale.pick(20, 100), torch.float64
        tops: dict[tuple[float, int], list[float]] = {}
        rows = []
        for rate, size in SETTINGS:
            for seed in scale.seeds:
                samples, model = drawn_digits(TRAIN, seed)[0], perceptron((64, 32, 10), seed)
                optimizer = SGD(model.parameters(), lr=rate)
                path = fit(model, samples, optimizer, size, epochs * TRAIN // size, seed)
                found = top_eigenvalue(model, samples)
                tops.setdefault((rate, size), []).append(found)
                rows.append(
                    {
                        "rate": rate,
                        "batch": size,
                        "rate / batch": rate / size,
                        "seed": seed,
                        "last loss": round(path[-1], 4),
                        "largest eigenvalue": round(found, 3),
                    }
                )
        low, high = SETTINGS[:3], SETTINGS[3:]
        seeds = range(len(scale.seeds))
        apart = [
            max(tops[at][k] for at in group) / min(tops[at][k] for at in group)
            for k in seeds
            for group in (low, high)
        ]
        falls = [tops[b][k] / tops[a][k] for k in seeds for a, b in zip(low, high, strict=True)]
        (small, _), model = drawn_digits(64, 0, double), perceptron((64, 4, 10), 0, dtype=double)
        exact = float(torch.linalg.eigvalsh(dense_hessian(model, small))[-1])
        ours = top_eigenvalue(model, small, 60)
        checks = [
            Check(
                "largest eigenvalue at four times the rate over batch, of that at one",
                "below 1: wider",
                spread(falls),
                agreed(fall < 1 for fall in falls),
            ),
            Check(
                "largest over least of them, at one rate over batch",
                "1: the same for all batches",
                spread(apart),
                agreed(ratio < 1.25 for ratio in apart),
            ),
            Check(
                "eigenvalue by Lanczos and of the whole matrix, 310 weights",
                f"{exact:.6f}",
                f"{ours:.6f}",
                abs(ours - exact) < 1e-4 * exact,
                True,
            ),
        ]
        curves = [
            Series(
                f"rate / batch {group[0][0] / group[0][1]:g}",
                [size for _, size in group],
                [sum(tops[at]) / len(tops[at]) for at in group],
                [min(tops[at]) for at in group],
                [max(tops[at]) for at in group],
                "lines+markers",
            )
            for group in (low, high)
        ]
        chart = lines("batch", "largest eigenvalue", curves, "xy")
        charts = [("Curvature at the end", "mean and range over seeds", chart)]
        note = f"{epochs} epochs each; larger steps end at a lower loss, which has less curvature"
        return Findings(checks, rows, charts, [note])
