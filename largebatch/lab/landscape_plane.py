"""The loss over two filter-normalised directions: the pictures of VGG-9 in the lecture.

Li et al. 2018, figure 3: batch 128 against batch 8192, on CIFAR-10. Here VGG-9 (quick: the default
network) on the digits.
"""

from __future__ import annotations

import torch
from torch import nn

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
from largebatch.lab.landscape_line import invariance, settle
from largebatch.lab.networks import seeded
from largebatch.lab.pictures import heat
from largebatch.lab.whole_batch import loss_of
from largebatch.models import image_offers, model_of
from largebatch.optim import SGD
from largebatch.weight_space import filter_normalized_direction, moved, weights_of

SMALL, LARGE = 16, 256
LEVEL = 1.0  # above the loss of the solution: what counts as its valley


@experiments.register("land-2d")
class LossOverAPlane(Experiment):
    """Draws the plane around the solutions of both batches."""

    lecture = "Optimization Techniques (KAIST AI602)"
    claim = "large batch: a sharp minimum, along two random directions (VGG-9)"
    source = "Li et al. 2018, figure 3"
    minutes = 2.7
    seeds = 2

    def measure(self, scale: Scale) -> Findings:
        """Measure how much of the plane is a valley."""
        name = scale.pick("digits_cnn", "vgg9")
        train, val = digits("train"), digits("val")
        seen = train[0][: scale.pick(100, 200)], train[1][: scale.pick(100, 200)]
        points, epochs = scale.pick(7, 21), scale.pick(6, 15)
        at = [-1 + 2 * k / (points - 1) for k in range(points)]
        rows, charts, centres = list[dict[str, float]](), [], list[float]()
        for seed in scale.seeds:
            for batch in (SMALL, LARGE):
                with seeded(seed):
                    model = model_of(name, {}, image_offers(10, (1, 8, 8)))
                optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
                steps = epochs * (len(train[1]) // batch)
                fit(model, train, optimizer, batch, steps, seed)
                settle(model, train)
                loss, weights = loss_of(model.eval(), seen), weights_of(model)
                generator = torch.Generator().manual_seed(seed)
                x, y = (filter_normalized_direction(model, generator) for _ in range(2))
                plane = [[loss(moved(weights, (x, a), (y, b))) for a in at] for b in at]
                own = float(nn.functional.cross_entropy(model(seen[0]), seen[1]))
                centres.append(abs(plane[points // 2][points // 2] - own))
                valley = sum(value < own + LEVEL for row in plane for value in row) / points**2
                rows.append({"seed": seed, "batch": batch, "loss": own, "valley": valley,
                             "held out": accuracy(model, val)})  # fmt: skip
                if seed == scale.seeds[0]:
                    shown = [[min(value, 5.0) for value in row] for row in plane]
                    charts.append(
                        (f"Batch {batch}", "loss over two directions of filters, at most 5",
                         heat("first direction", "second direction", at, at, shown, unit="loss"))
                    )  # fmt: skip
        wide = [a["valley"] - b["valley"] for a, b in zip(rows[::2], rows[1::2], strict=True)]
        filters, _ = invariance(digits("train", torch.float64, limit=300))
        checks = [
            Check(f"share of the plane less than {LEVEL:g} higher, batch {SMALL} less {LARGE}",
                  "above 0: wider", spread(wide), agreed(gain > 0 for gain in wide)),
            Check("picture of a rescaled network, largest difference", "0 (to 1e-9)",
                  f"{filters:.1e}", filters < 1e-9, exact=True),
            Check("centre of the plane against the network's loss", "the same (to 1e-5)",
                  f"{max(centres):.1e}", max(centres) < 1e-5, exact=True),
        ]  # fmt: skip
        note = (
            f"{name} on the digits, SGD of rate 0.05, {epochs} epochs each; norms as in evaluation."
        )
        return Findings(checks, rows, charts, [note])
