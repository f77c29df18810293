"""The loss along a filter-normalised direction, around solutions of a small and a large batch.

Li et al. 2018, "Visualizing the loss landscape of neural nets", sections 3 to 5. A network whose
layers are multiplied and divided by a factor computes the same function. Its picture is the same
only along directions whose filters are as long as its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from largebatch.lab.descent import fit
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
from largebatch.lab.whole_batch import WholeBatch, loss_of
from largebatch.optim import SGD
from largebatch.weight_space import (
    WeightPath,
    Weights,
    gaussian_noise,
    moved,
    normalize_filters,
    path_losses,
    recompute_statistics,
    weights_of,
)

SMALL, LARGE = 16, 721  # half of the digits
FACTOR = 10.0


def rescaled(weights: Weights) -> dict[str, Tensor]:
    """Return a ReLU perceptron's weights with the first layer times a factor, the next over it."""
    names = [name for name in weights if name.endswith("weight")]
    first = names[0].removesuffix("weight")
    scaled = {name: w * FACTOR for name, w in weights.items() if name.startswith(first)}
    return {**weights, **scaled, names[1]: weights[names[1]] / FACTOR}


def invariance(samples: Samples) -> tuple[float, float]:
    """Return how far pictures of a network and of the same one rescaled are apart at most.

    Along directions of filters, and along plain Gaussian ones.
    """
    model = perceptron((64, 16, 16, 10), 0, dtype=torch.float64)
    fit(model, samples, SGD(model.parameters(), lr=0.1), 32, 200, 0)
    loss, own = loss_of(model, samples), weights_of(model)
    at = [-1 + k / 5 for k in range(11)]
    found = {True: 0.0, False: 0.0}
    for normalized in found:
        curves = []
        for weights in (own, rescaled(own)):
            along = gaussian_noise(weights, 1)
            along = normalize_filters(along, weights) if normalized else along
            curves.append([loss(moved(weights, (along, a))) for a in at])
        found[normalized] = max(abs(a - b) for a, b in zip(*curves, strict=True))
    return found[True], found[False]


def settle(model: nn.Module, samples: Samples) -> None:
    """Give the norms the statistics of the whole set."""
    found = recompute_statistics(model, [samples], lambda net, batch: net(batch[0]))
    model.load_state_dict(found, strict=False)


@experiments.register("land-1d")
class LossAlongALine(Experiment):
    """Draws the loss around both solutions, and from one to the other."""

    lecture = "Optimization Techniques (KAIST AI602)"
    claim = "large-batch training finds a sharp minimum, seen along random directions"
    source = "Li et al. 2018, sections 3 to 5"
    minutes = 0.4
    seeds = 5

    def measure(self, scale: Scale) -> Findings:
        """Train with SGD of one rate for equal epochs; norms as in evaluation in the pictures."""
        train = digits("train")
        double = digits("train", torch.float64, limit=500)
        points, epochs = scale.pick(21, 51), scale.pick(10, 60)
        at = [-1 + 2 * k / (points - 1) for k in range(points)]
        around = {SMALL: list[list[float]](), LARGE: list[list[float]]()}
        between, rows, ends = list[list[float]](), list[dict[str, float]](), list[float]()
        for seed in scale.seeds:
            solutions, own = [], []
            for batch in (SMALL, LARGE):
                model = perceptron((64, 64, 64, 10), seed, norm=True)
                optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
                steps = epochs * (len(train[1]) // batch)
                fit(model, train, optimizer, batch, steps, seed)
                settle(model, train)
                loss = loss_of(model.eval(), train)
                weights = weights_of(model)
                along = normalize_filters(gaussian_noise(weights, 100 + seed), weights)
                curve = [loss(moved(weights, (along, a))) for a in at]
                around[batch].append(curve)
                solutions.append(weights_of(model, statistics=True))
                own.append(float(WholeBatch(model, train).loss()))
                half = points // 4
                rows.append({"seed": seed, "batch": batch, "loss": own[-1],
                             "rise at 0.5": (curve[half] + curve[-1 - half]) / 2 - own[-1],
                             "rise at 1": (curve[0] + curve[-1]) / 2 - own[-1]})  # fmt: skip
            places = [k / 20 for k in range(21)]
            between.append(path_losses(loss, WeightPath(solutions), places))
            ends += [abs(between[-1][0] - own[0]), abs(between[-1][-1] - own[1])]
        filters, plain = invariance(double)
        sharper = [b["rise at 0.5"] / a["rise at 0.5"]
                   for a, b in zip(rows[::2], rows[1::2], strict=True)]  # fmt: skip
        checks = [
            Check(f"rise of the loss half-way, batch {LARGE} over batch {SMALL}",
                  "above 1: sharper", spread(sharper), agreed(ratio > 1 for ratio in sharper)),
            Check("picture of the rescaled network along filters, largest difference",
                  "0 (to 1e-9)", f"{filters:.1e}", filters < 1e-9, exact=True),
            Check("the same along plain directions", "another picture: over 0.1", f"{plain:.2g}",
                  plain > 0.1, exact=True),
            Check("ends of the line between solutions, statistics on it too", "their losses",
                  f"{max(ends):.1e} apart", max(ends) < 1e-6, exact=True),
        ]  # fmt: skip
        series = [over_seeds(f"batch {batch}", at, runs) for batch, runs in around.items()]
        charts = [
            ("Around the solutions", "along one direction of filters",
             lines("distance, in lengths of filters", "loss", series, log="y")),
            ("Between the solutions", "weights and statistics of norms on the line",
             lines("place", "loss", [over_seeds("loss", places, between)])),
        ]  # fmt: skip
        note = f"Perceptron 64-64-64-10 with batch norm, SGD of rate 0.1, {epochs} epochs each."
        return Findings(checks, rows, charts, [note])
