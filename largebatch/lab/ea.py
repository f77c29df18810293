"""The cost of evolution strategies: their gradient, growth with the number of weights, and digits.

Salimans et al. 2017, "Evolution strategies as a scalable alternative to reinforcement learning".
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from largebatch.lab.descent import accuracy
from largebatch.lab.digits import CLASSES, digits
from largebatch.lab.evolution import estimate, evaluations, evolve
from largebatch.lab.experiment import (
    Check,
    Experiment,
    Findings,
    Scale,
    agreed,
    experiments,
    spread,
)
from largebatch.lab.pictures import Series, over_seeds, scatter
from largebatch.report.log_fit import straight_line


@experiments.register("ea")
class Evolution(Experiment):
    """Its gradient on a quadratic, its cost against the number of weights, and digits."""

    lecture = "Training in practice (lecture 3), optional: Evolutionary Algorithms"
    claim = "Evaluate N individuals, mutate the best; for large models currently very inefficient"
    source = "Salimans et al. 2017; the mutation w2 = w1 + sigma e of the slide"
    minutes = 0.5
    seeds = 5

    def measure(self, scale: Scale) -> Findings:
        """Count evaluations to a tenth of the loss; spend as many passes as gradient descent."""
        size, pairs, trials = 20, 50, scale.pick(100, 1000)
        curvature = torch.linspace(0.1, 3, size, dtype=torch.float64)
        w = torch.ones(size, dtype=torch.float64)
        true = curvature * w
        errors = torch.stack([
            estimate(lambda x: (curvature * x.square()).sum(-1) / 2, w, 0.5, pairs, seed) - true
            for seed in range(trials)
        ])  # fmt: skip
        # Of one pair the estimate is e (e.g): mean g, total variance (d + 1)|g|^2.
        predicted = (size + 1) / pairs * float(true.square().sum())
        ratios = errors.square().sum(1) / predicted
        ratio, off = float(ratios.mean()), 3 * float(ratios.std()) / math.sqrt(trials)
        bias = float(errors.mean(0).square().sum()) / (predicted / trials)
        chance = 3 * math.sqrt(2 * (size + 3)) / (size + 1)
        checks = [
            Check("squared bias of the gradient estimate on a quadratic, over what chance gives",
                  "1", f"{bias:.2f}", bias < 1 + chance, exact=True),
            Check("its variance over (d + 1)|g|^2 / pairs", "1", f"{ratio:.3f} ± {off:.3f}",
                  abs(ratio - 1) < off, exact=True),
        ]  # fmt: skip
        sizes = scale.pick((4, 16, 64, 256), (4, 16, 64, 256, 1024))
        costs = [[evaluations(size, seed) for size in sizes] for seed in scale.seeds]
        logs = [math.log(d) for d in sizes]
        slopes = [straight_line(logs, [math.log(c) for c in cost])[0] for cost in costs]
        checks.append(
            Check("growth of the evaluations with the number of weights, as its power",
                  "grows; gradient descent's 1 step does not", spread(slopes),
                  agreed(slope > 0.5 for slope in slopes))
        )  # fmt: skip
        rows: list[dict[str, Any]] = [
            {"seed": seed, **{f"d = {d}": c for d, c in zip(sizes, cost, strict=True)}}
            for seed, cost in zip(scale.seeds, costs, strict=True)
        ]
        passes = scale.pick(100, 1000)
        pairs_of = [contest(seed, passes) for seed in scale.seeds]
        for row, (ours, theirs) in zip(rows, pairs_of, strict=True):
            row |= {"evolution on digits": ours, "gradient on digits": theirs}
        checks.append(
            Check(f"held-out digits right after {passes} passes each",
                  "fewer than by gradient descent",
                  f"{spread([o for o, _ in pairs_of])} against {spread([t for _, t in pairs_of])}",
                  agreed(ours < theirs for ours, theirs in pairs_of))
        )  # fmt: skip
        drawn = over_seeds("evaluations", sizes, costs)
        points = Series("evaluations to a tenth of the loss", sizes, drawn.y)
        picture = scatter("weights", "evaluations", [points], "xy")
        note = "on half the squared length, a line of the points beside"
        return Findings(checks, rows, [("Cost against size", note, picture)])


def contest(seed: int, passes: int) -> tuple[float, float]:
    """Return held-out accuracies of a linear classifier, evolved and by gradient descent.

    A pass forward counts as one, a pass forward and back as three.
    """
    (images, targets), val = digits("train"), digits("val")

    def scores(w: Tensor, images: Tensor) -> Tensor:
        return images.flatten(1) @ w.view(CLASSES, -1).T

    def losses(population: Tensor) -> Tensor:
        return torch.stack([cross_entropy(scores(w, images), targets) for w in population])

    start = torch.zeros(CLASSES * 64)
    evolved, _ = evolve(losses, start, 0.05, seed, lambda _, spent: spent >= passes)
    w = start.requires_grad_()
    for _ in range(passes // 3):
        (gradient,) = torch.autograd.grad(losses(w[None])[0], w)
        w = (w - 0.5 * gradient).detach().requires_grad_()
    ours, theirs = (round(accuracy(partial(scores, each), val), 4) for each in (evolved, w))
    return ours, theirs
