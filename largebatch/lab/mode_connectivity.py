"""No barriers between solutions: a curve of low loss joins two networks trained apart.

Garipov et al. 2018, "Loss surfaces, mode connectivity, and fast ensembling of DNNs", section 3: a
Bezier curve and a chain of two lines, each with one bend that is trained.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from largebatch.lab.descent import batches, fit
from largebatch.lab.digits import Samples, digits
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
from largebatch.lab.whole_batch import loss_of
from largebatch.optim import SGD
from largebatch.weight_space import (
    Curve,
    WeightPath,
    bezier,
    loss_barrier,
    path_losses,
    polychain,
    train_curve,
    weights_of,
)

PLACES = [k / 40 for k in range(41)]
KINDS = {"Bezier curve": bezier, "chain of two lines": polychain}


def cost(model: nn.Module, batch: Samples) -> Tensor:
    """Return the mean loss of a batch."""
    return cross_entropy(model(batch[0]), batch[1])


def joined(
    model: nn.Module, first: dict[str, Tensor], last: dict[str, Tensor], samples: Samples,
    steps: int, seed: int, coefficients: object = bezier,
) -> WeightPath:  # fmt: skip
    """Return a trained path between two solutions, with one bend."""
    curve = Curve(model, first, last, coefficients, seed=seed)  # type: ignore[arg-type]
    moving = [p for p in curve.parameters() if p.requires_grad]
    optimizer = SGD(moving, lr=0.05, momentum=0.9)

    def rate(step: int) -> float:
        return 0.05 * min(1.0, 2 * (1 - step / steps))

    return train_curve(curve, batches(samples, 64, steps, seed), cost, optimizer, rate)


def solution(model: nn.Module, samples: Samples, steps: int, seed: int) -> dict[str, Tensor]:
    """Return the weights after training."""
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    fit(model, samples, optimizer, 64, steps, seed)
    return weights_of(model)


@experiments.register("modeconn")
class ModeConnectivity(Experiment):
    """Joins two perceptrons by a line, a Bezier curve and a chain."""

    lecture = "An overview of empirical studies in NNs (Sagun)"
    claim = "Garipov et al.: no barriers between solutions"
    source = "Garipov et al. 2018, section 3"
    minutes = 0.5

    def measure(self, scale: Scale) -> Findings:
        """Compare barriers of the loss, and the error along the paths."""
        train, val = digits("train"), digits("val")
        steps = scale.pick(300, 2000)
        curves = {name: list[list[float]]() for name in ("line", *KINDS)}
        rows, barriers = list[dict[str, float | str]](), dict[str, list[float]]()
        same = True
        for seed in scale.seeds:
            ends = []
            for number in (2 * seed, 2 * seed + 1):
                model = perceptron((64, 32, 32, 10), number)
                ends.append(solution(model, train, steps, number))
            first, last = ends
            paths = {"line": WeightPath(ends)} | {
                name: joined(model, first, last, train, 2 * steps, seed, kind)
                for name, kind in KINDS.items()
            }
            loss, held_out = loss_of(model, train), loss_of(model, val, _error)
            for name, path in paths.items():
                for t, end in ((0.0, first), (1.0, last)):
                    same &= all(torch.equal(path(t)[key], end[key]) for key in end)
                curves[name].append(path_losses(loss, path, PLACES))
                barriers.setdefault(name, []).append(loss_barrier(PLACES, curves[name][-1]))
                wrong = max(path_losses(held_out, path, PLACES))
                rows.append({"seed": seed, "path": name, "barrier": barriers[name][-1],
                             "largest loss": max(curves[name][-1]),
                             "largest held-out error": wrong})  # fmt: skip
        lower = [max(barriers[name][k] for name in KINDS) < line
                 for k, line in enumerate(barriers["line"])]  # fmt: skip
        checks = [
            *(Check(f"barrier of the {name} over the line's", "none: below 0.1", spread(ratios),
                    agreed(ratio < 0.1 for ratio in ratios))
              for name in KINDS
              for ratios in [[b / a for a, b in zip(barriers["line"], barriers[name],
                                                    strict=True)]]),
            Check("paths end in the solutions, to the bit", "yes", "yes" if same else "no", same,
                  exact=True),
            Check("barriers of trained curves, below the line's", "all", f"{sum(lower)} of"
                  f" {len(lower)} pairs", all(lower), exact=True),
        ]  # fmt: skip
        series = [over_seeds(name, PLACES, runs) for name, runs in curves.items()]
        note = "of the whole training set; band: over pairs of networks"
        return Findings(
            checks, rows, [("Loss from network to network", note, lines("t", "loss", series))],
            [f"Perceptrons 64-32-32-10, {steps} steps; the bend is trained for {2 * steps}."],
        )  # fmt: skip


def _error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) != targets).float().mean()
