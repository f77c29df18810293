"""Gradient descent and SGD reach the same place in a wide network: their mistakes are alike.

Sagun et al. 2014 on MNIST, a fully connected network of 450,000 parameters: SGD makes 174 mistakes
on 10,000 images, gradient descent 194. Here on the digits, trained to the same loss.
"""

from __future__ import annotations

from statistics import median

import torch

from largebatch.lab.descent import accuracy, descend
from largebatch.lab.digits import Samples, drawn_digits
from largebatch.lab.experiment import (
    Check,
    Experiment,
    Findings,
    Scale,
    agreed,
    experiments,
)
from largebatch.lab.networks import perceptron
from largebatch.lab.pictures import lines, over_seeds
from largebatch.lab.whole_batch import WholeBatch
from largebatch.optim import SGD

BATCH, ENOUGH = 20, 0.02
RATES = {"SGD": 0.05, "GD": 0.2}
MOST = 20_000  # steps


@experiments.register("gd-vs-sgd")
class DescentAndSgd(Experiment):
    """Trains two hidden layers of several widths both ways from the same weights."""

    lecture = "An overview of empirical studies in NNs (Sagun)"
    claim = "GD is the same as SGD: average number of mistakes: SGD 174, GD 194 (of 10,000)"
    source = "Sagun, Guney, Ben Arous, LeCun 2014, arXiv:1412.6615"
    minutes = 1.0
    seeds = 5

    def measure(self, scale: Scale) -> Findings:
        """Count mistakes on what is held out when both have a training loss of 0.02."""
        train, widths = scale.pick(400, 600), scale.pick((8, 32, 128), (8, 32, 128, 600))
        rows, sizes = [], {}
        mistakes: dict[tuple[str, int], list[int]] = {}
        for width in widths:
            for seed in scale.seeds:
                sets = drawn_digits(train, seed)
                for name, size in (("SGD", BATCH), ("GD", train)):
                    steps, found, parameters = _trained(*sets, width, size, RATES[name], seed)
                    mistakes.setdefault((name, width), []).append(found)
                    sizes[width] = parameters
                    rows.append(
                        {
                            "N": parameters,
                            "seed": seed,
                            "by": name,
                            "steps": steps,
                            "mistakes": found,
                        }
                    )
        mean = {key: sum(found) / len(found) for key, found in mistakes.items()}
        held_out = 1797 - train
        wide = widths[-1]
        ratio = mean["GD", wide] / mean["SGD", wide]
        pairs = list(zip(mistakes["GD", wide], mistakes["SGD", wide], strict=True))
        gaps = {
            width: median(
                abs(a - b)
                for a, b in zip(mistakes["GD", width], mistakes["SGD", width], strict=True)
            )
            for width in widths
        }
        apart = _difference(drawn_digits(train, 0, torch.float64)[0])
        checks = [
            Check(
                f"mistakes of GD and SGD, widest, of {held_out}",
                "194 and 174 of 10,000: GD no fewer",
                f"{mean['GD', wide]:.1f} and {mean['SGD', wide]:.1f}",
                agreed(a >= b for a, b in pairs),
            ),
            Check(
                "mistakes of GD over those of SGD, widest",
                f"{194 / 174:.2f}: nearly the same",
                f"{ratio:.2f}",
                abs(ratio - 1) < 0.25,
            ),
            Check(
                "mistakes apart, median over seeds, widest and narrowest",
                "fewer the larger N",
                f"{gaps[wide]:.1f} and {gaps[widths[0]]:.1f}",
                gaps[wide] < gaps[widths[0]],
            ),
            Check(
                "mean gradient of an epoch's batches at the same weights less GD's",
                "0",
                f"{apart:.1e}",
                apart < 1e-12,
                True,
            ),
        ]
        curves = [
            over_seeds(
                name,
                [sizes[width] for width in widths],
                [
                    [mistakes[name, width][k] / held_out for width in widths]
                    for k in range(len(scale.seeds))
                ],
                "lines+markers",
            )
            for name in ("SGD", "GD")
        ]
        note = f"of {held_out} held out; mean and range over seeds"
        chart = ("Mistakes", note, lines("N", "", curves, "x", percent=True))
        short = sum(row["steps"] == MOST for row in rows)
        notes = [f"{train} digits, batch {BATCH}, loss to {ENOUGH}"]
        notes += [f"{short} runs had not come there after {MOST} steps"] if short else []
        return Findings(checks, rows, [chart], notes)


def _trained(
    train: Samples, held: Samples, width: int, size: int, rate: float, seed: int
) -> tuple[int, int, int]:
    """Return steps to the loss, mistakes, parameters."""
    model = perceptron((64, width, width, 10), seed)
    path = descend(model, train, SGD(model.parameters(), lr=rate), size, MOST, seed)
    whole = WholeBatch(model, train)
    for steps, _ in enumerate(path, 1):
        if steps % 25 == 0 and whole.loss() < ENOUGH:
            break
    mistakes = round((1 - accuracy(model, held)) * len(held[1]))
    return steps, mistakes, sum(p.numel() for p in model.parameters())


def _difference(samples: Samples) -> float:
    """Return the largest entry of the mean of all batches' gradients less that of all at once."""
    model = perceptron((64, 8, 10), 0, dtype=torch.float64)
    parts = zip(*(part.split(BATCH) for part in samples), strict=True)
    gradients = [torch.cat([g.flatten() for g in WholeBatch(model, part).gradient()])
                 for part in (*parts, samples)]  # fmt: skip
    return float((torch.stack(gradients[:-1]).mean(0) - gradients[-1]).abs().max())
