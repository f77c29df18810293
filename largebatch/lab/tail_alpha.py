"""The tail index of gradient noise: the estimator where the answer is known, then of a network.

Simsekli, Sagun, Gurbuzbalaban 2019. The estimator is right for stable distributions. For others
with a variance it is below 2 as well, so an index below 2 does not prove heavy tails.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from largebatch.lab.digits import drawn_digits
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
from largebatch.lab.pictures import lines, over_seeds
from largebatch.optim import SGD
from largebatch.probes import tail_index

BATCH = 100  # of the paper
TOLERANCE = 0.02


def stable(alpha: float, count: int, rng: np.random.Generator) -> Tensor:
    """Draw symmetric alpha-stable numbers (Chambers, Mallows, Stuck 1976)."""
    angle = rng.uniform(-math.pi / 2, math.pi / 2, count)
    waiting = rng.exponential(1, count)
    first = np.sin(alpha * angle) / np.cos(angle) ** (1 / alpha)
    return torch.from_numpy(first * (np.cos((1 - alpha) * angle) / waiting) ** (1 / alpha - 1))


def along_training(width: int, seed: int, steps: int, every: int) -> list[float]:
    """Return the index of the noise of batches of 100 while a two-layer network learns."""
    (x, y), _ = drawn_digits(1000, seed)
    model = perceptron((64, width, 10), seed)
    parameters = list(model.parameters())
    generator = torch.Generator().manual_seed(seed)
    optimizer = SGD(parameters, lr=0.1)
    found = []

    def gradient(rows: Tensor | slice) -> list[Tensor]:
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        return list(torch.autograd.grad(loss, parameters))

    for step in range(steps):
        grads = gradient(torch.randperm(len(y), generator=generator)[:BATCH])
        if step % every == 0:
            whole = gradient(slice(None))
            noise = [(a - b).flatten() for a, b in zip(grads, whole, strict=True)]
            found.append(tail_index(torch.cat(noise)))
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad
        optimizer.step()
    return found


@experiments.register("tail-alpha")
class TailAlpha(Experiment):
    """Draws of known distributions, controls that are not stable, and a network's noise."""

    lecture = "An overview of empirical studies in NNs (Sagun)"
    claim = "But the noise is not Gaussian!"
    source = "Simsekli, Sagun, Gurbuzbalaban 2019; estimator: Mohammadi et al. 2015, cor. 2.4"
    minutes = 1.0

    def measure(self, scale: Scale) -> Findings:
        """Check the estimator, then follow the index along training for several widths."""
        count = scale.pick(10**6, 4 * 10**6)
        rng = np.random.default_rng(0)
        known = {
            "Gaussian": (2.0, torch.from_numpy(rng.normal(size=count))),
            "Cauchy": (1.0, torch.from_numpy(rng.standard_cauchy(count))),
            "stable, 1.5": (1.5, stable(1.5, count, rng)),
        }
        controls = {
            "Student, 3 degrees": torch.from_numpy(rng.standard_t(3, count)),
            "Laplace": torch.from_numpy(rng.laplace(size=count)),
        }
        rows, checks = [], []
        for name, (index, draws) in known.items():
            found = tail_index(draws)
            rows.append({"noise": name, "index": index, "estimate": round(found, 4)})
            holds = abs(found - index) < TOLERANCE
            checks.append(Check(f"index of {name}", f"{index}", f"{found:.4f}", holds, True))
        for name, draws in controls.items():
            rows.append({"noise": name, "index": 2.0, "estimate": round(tail_index(draws), 4)})
        widths = scale.pick((32, 256), (16, 64, 256, 1024))
        steps, every = scale.pick((200, 20), (2000, 50))
        curves, ends = [], []
        for width in widths:
            runs = [along_training(width, seed, steps, every) for seed in scale.seeds]
            curves.append(over_seeds(f"width {width}", list(range(0, steps, every)), runs))
            ends += [sum(run[len(run) // 2 :]) / len(run[len(run) // 2 :]) for run in runs]
            rows += [
                {"noise": f"network of width {width}", "seed": seed, "estimate": round(end, 4)}
                for seed, end in zip(scale.seeds, ends[-len(runs) :], strict=True)
            ]
        checks.insert(
            0,
            Check(
                "index of a network's gradient noise, second half of training",
                "below 2: not Gaussian",
                spread(ends),
                agreed(end < 2 - TOLERANCE for end in ends),
            ),
        )
        chart = lines("step", "tail index", curves, levels={"Gaussian": 2.0, "Cauchy": 1.0})
        note = f"batch {BATCH}, digits, all entries together; range over seeds"
        short = "Student and Laplace have a variance, so their index is 2, and are estimated lower"
        return Findings(
            checks,
            rows,
            [("Tail index along training", note, chart)],
            [f"{short}: the estimate cannot tell them from heavy tails. Nor can it for a network."],
        )
