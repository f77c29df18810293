"""AdaGrad, SGD with Nesterov's momentum and Adam on the network that Adam was shown on.

Kingma and Ba 2015, figure 3: c64-c64-c128-1000 on CIFAR-10, with and without dropout. Here the
digits stand for CIFAR-10. Every optimizer has the best of three rates.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean

import torch
from torch import nn

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
from largebatch.lab.networks import seeded
from largebatch.lab.pictures import lines, over_seeds
from largebatch.models import image_offers, model_of
from largebatch.optim import SGD

BATCH = 64
Make = Callable[[nn.Module, float], torch.optim.Optimizer]
OPTIMIZERS: dict[str, tuple[Make, tuple[float, float, float]]] = {
    "AdaGrad": (lambda m, r: torch.optim.Adagrad(m.parameters(), lr=r), (1e-3, 3e-3, 1e-2)),
    "Nesterov": (
        lambda m, r: SGD(m.parameters(), lr=r, momentum=0.9, nesterov=True),
        (1e-3, 3e-3, 1e-2),
    ),
    "Adam": (lambda m, r: torch.optim.Adam(m.parameters(), lr=r), (3e-4, 1e-3, 3e-3)),
}


@experiments.register("adam-cnn")
class AdamOnConvolutions(Experiment):
    """Trains it with three optimizers, and looks at the first epochs and the last."""

    lecture = "Optimization Techniques (KAIST AI602)"
    claim = "AdaGrad and Adam are fast in the first epochs; in the end Nesterov and Adam are better"
    source = "Kingma and Ba 2015, figure 3"
    minutes = 2.7

    def measure(self, scale: Scale) -> Findings:
        """Find each optimizer's best rate with the first seed, then take all seeds."""
        samples = digits("train", limit=scale.pick(256, 512))
        epochs = scale.pick(6, 45)
        rows, charts = list[dict[str, float | str]](), []
        early, late = dict[str, list[float]](), dict[str, list[float]]()
        for drop in scale.pick((0.0,), (0.0, 0.5)):
            series = []
            for name, (make, rates) in OPTIMIZERS.items():
                first = scale.seeds[0]
                tried = {
                    rate: self._train(make, rate, drop, samples, epochs, first)
                    for rate in scale.pick(rates[1:2], rates)
                }
                rate = min(tried, key=lambda rate: tried[rate][-1])
                runs = [tried[rate]] + [
                    self._train(make, rate, drop, samples, epochs, seed) for seed in scale.seeds[1:]
                ]
                rows.append({"dropout": drop, "optimizer": name, "rate": rate,
                             "third epoch": mean(run[2] for run in runs),
                             "last epoch": mean(run[-1] for run in runs)})  # fmt: skip
                series.append(over_seeds(name, range(1, epochs + 1), runs))
                if drop == 0:
                    early[name], late[name] = [r[2] for r in runs], [r[-1] for r in runs]
            charts.append(
                (f"Training cost, dropout {drop:g}", "mean loss of each epoch",
                 lines("epoch", "training cost", series, log="y"))
            )  # fmt: skip
        quick = [a / n for a, n in zip(early["Adam"], early["Nesterov"], strict=True)]
        last = [a / g for a, g in zip(late["Adam"], late["AdaGrad"], strict=True)]
        plain = [n / g for n, g in zip(late["Nesterov"], late["AdaGrad"], strict=True)]
        shape = samples[0].shape[1:]
        count = sum(p.numel() for p in _model(0.0, 0).parameters())
        expected = _count((int(shape[0]), int(shape[1]), int(shape[2])))
        checks = [
            Check("cost of the third epoch, Adam over Nesterov", "below 1", spread(quick),
                  agreed(ratio < 1 for ratio in quick)),
            Check("cost of the last epoch, Adam over AdaGrad", "below 1", spread(last),
                  agreed(ratio < 1 for ratio in last)),
            Check("cost of the last epoch, Nesterov over AdaGrad", "below 1", spread(plain),
                  agreed(ratio < 1 for ratio in plain)),
            Check("parameters of c64-c64-c128-1000 on these images", f"{expected:,}", f"{count:,}",
                  count == expected, exact=True),
        ]  # fmt: skip
        note = f"{len(samples[1])} digits, batch {BATCH}; checks are without dropout."
        return Findings(checks, rows, charts, [note])

    def _train(
        self, make: Make, rate: float, drop: float, samples: Samples, epochs: int, seed: int
    ) -> list[float]:
        each = len(samples[1]) // BATCH
        model = _model(drop, seed)
        with seeded(seed):
            steps = epochs * each
            path = fit(model, samples, make(model, rate), BATCH, steps, seed)
        path += [path[-1]] * (steps - len(path))  # one that has diverged stays where it is
        return [mean(path[k : k + each]) for k in range(0, steps, each)]


def _model(drop: float, seed: int) -> nn.Module:
    with seeded(seed):
        return model_of("adam_cnn", {"drop": drop or None}, image_offers(10, (1, 8, 8)))


def _count(shape: tuple[int, int, int]) -> int:
    """Return the parameters of three 5x5 convolutions with poolings, 1,000 units and 10 classes."""
    total, (channels, height, width) = 0, shape
    for out in (64, 64, 128):
        total += out * (25 * channels + 1)
        channels, height, width = out, (height + 1) // 2, (width + 1) // 2
    return total + 1000 * (channels * height * width + 1) + 10 * 1001
