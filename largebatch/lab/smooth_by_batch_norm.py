"""What batch norm does to the loss along a step, to the gradient, and to the largest rate.

Santurkar et al. 2018: with it the loss and the gradient change less along the gradient's direction,
while layers move under each other's feet as before. Their theorem 4.1 for the gradient by a norm's
input y and output z, with xhat = (y - mu) / sigma over the m samples of a batch,

    |dL/dy|^2 <= gamma^2 / sigma^2 (|dL/dz|^2 - (1'dL/dz)^2 / m - (xhat'dL/dz)^2 / m),

is an equality where eps is 0. The slide prints the mean's square in the middle, which is less.
"""

from __future__ import annotations

from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from largebatch.lab.around_a_step import EVERY, drawn, largest_rate, walk
from largebatch.lab.descent import digits
from largebatch.lab.experiment import (
    Check,
    Experiment,
    Findings,
    Scale,
    agreed,
    experiments,
    spread,
)
from largebatch.lab.pictures import lines, over_seeds


def theorem(seed: int) -> tuple[float, float]:
    """Return the largest ratio of the left side to the right, as proved and as on the slide.

    Of all units of all norms of a network in float64.
    """
    model = drawn(True, seed).double()
    x, targets = digits("train", torch.float64, 128)
    kept: list[tuple[Any, Tensor, Tensor]] = []
    for layer in model:
        y, x = x, layer(x)
        if isinstance(layer, nn.BatchNorm1d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            layer.eps = 1e-30
            x = layer(y)
            kept.append((layer, y, x))
    loss = cross_entropy(x, targets)
    proved, printed = 0.0, 0.0
    for layer, y, z in kept:
        by_input, by_output = torch.autograd.grad(loss, (y, z), retain_graph=True)
        spread_, centre = torch.var_mean(y, 0, correction=0)
        hat, m = (y - centre) / spread_.sqrt(), len(y)
        along = (hat * by_output).sum(0).square() / m
        whole = by_output.square().sum(0) - along
        factor = layer.weight.square() / spread_
        left = by_input.square().sum(0)
        seen = left > 1e-30  # a dead unit has 0 on both sides
        bounds = (whole - by_output.sum(0).square() / m, whole - by_output.mean(0).square())
        one, other = (float((left / (factor * bound))[seen].detach().max()) for bound in bounds)
        proved, printed = max(proved, one), max(printed, other)
    return proved, printed


@experiments.register("bn-smooth")
class SmoothByBatchNorm(Experiment):
    """A perceptron of six layers of 64 on digits, at rate 0.1, with and without batch norm."""

    lecture = "Optimization Techniques (KAIST AI602)"
    claim = "BN smoothens the loss landscape, which increases the largest stable learning rate"
    source = "Santurkar et al. 2018, figure 4 and theorem 4.1; Bjorck et al. 2018"
    minutes = 1.5

    def measure(self, scale: Scale) -> Findings:
        """Compare medians over the steps looked at."""
        steps = scale.pick(60, 100)
        paths = {
            name: [walk(norm, seed, steps) for seed in scale.seeds]
            for name, norm in (("batch norm", True), ("none", False))
        }
        rates = {
            name: [largest_rate(norm, seed, scale.pick(20, 100)) for seed in scale.seeds]
            for name, norm in (("batch norm", True), ("none", False))
        }
        theorems = [theorem(seed) for seed in scale.seeds]
        proved, printed = max(t[0] for t in theorems), max(t[1] for t in theorems)
        identities = [
            Check(
                "the theorem's left side over its right, all units",
                "at most 1; 1 where eps is 0",
                f"{proved:.9f}",
                abs(proved - 1) < 1e-6,
                True,
            ),
            Check(
                "the same as the slide prints it",
                "at most 1",
                f"{printed:.9f}",
                printed < 1 + 1e-9,
                True,
            ),
        ]
        middles = {
            (name, what): [median(getattr(path, what)) for path in found]
            for name, found in paths.items()
            for what in ("loss", "gradient", "smoothness", "shift")
        }
        checks = []
        for what, words in (
            ("loss", "range of the loss along the gradient"),
            ("gradient", "how far the gradient moves along it"),
            ("smoothness", "its change over that of the weights"),
        ):
            a, b = middles["batch norm", what], middles["none", what]
            held = agreed(x < y for x, y in zip(a, b, strict=True))
            compared = f"{spread(a)} against {spread(b)}"
            checks.append(Check(f"{words}, median", "smaller with BN", compared, held))
        a, b = rates["batch norm"], rates["none"]
        held = agreed(x > y for x, y in zip(a, b, strict=True))
        compared = f"{spread(a)} against {spread(b)}"
        checks.append(Check("largest stable rate", "larger with BN", compared, held))
        a, b = middles["batch norm", "shift"], middles["none", "shift"]
        held = agreed(x > 0.8 * y for x, y in zip(a, b, strict=True))
        compared = f"{spread(a)} against {spread(b)}"
        checks.append(
            Check(
                "shift of a layer's gradient by those below", "no smaller with BN", compared, held
            )
        )
        rows = [
            {
                "norm": name,
                "loss range": spread(middles[name, "loss"]),
                "gradient moves": spread(middles[name, "gradient"]),
                "smoothness": spread(middles[name, "smoothness"]),
                "covariate shift": spread(middles[name, "shift"]),
                "largest stable rate": spread(rates[name]),
            }
            for name in paths
        ]
        places = list(range(0, steps, EVERY))
        charts = [
            (
                title,
                note,
                lines(
                    "step",
                    title.lower(),
                    [
                        over_seeds(name, places, [getattr(path, what) for path in found])
                        for name, found in paths.items()
                    ],
                    log="y",
                ),
            )
            for title, note, what in (
                ("Range of the loss", "over half a step to four along the gradient", "loss"),
                ("Movement of the gradient", "farthest along the same steps", "gradient"),
                ("Covariate shift", "relative, of the middle layer's gradient", "shift"),
            )
        ]
        notes = [
            f"the first {steps} steps, in which the digits are learned; by step 600 both losses are"
            " near 0, and medians over all of these show no difference",
            "the shift grows with the rate, which without norm is a third of the largest",
        ]
        return Findings([*checks, *identities], rows, charts, notes)
