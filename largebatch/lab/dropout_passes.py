"""Dropout left on when a network is used: the mean of many passes, and what their spread tells.

Gal and Ghahramani 2016. In the digits' network dropout comes only before the last linear layer.
Then the logits' mean over passes tends to the logits of evaluation: the distance falls as 1 /
sqrt(k).
"""

from __future__ import annotations

import math
from statistics import mean

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
from largebatch.lab.networks import seeded
from largebatch.lab.pictures import lines, over_seeds
from largebatch.models.digits_cnn import digits_cnn
from largebatch.optim import SGD
from largebatch.probes.mc_dropout import dropping
from largebatch.report.log_fit import straight_line

DROP = 0.5
PASSES = [1, 2, 4, 8, 16, 32, 64, 128]


@torch.no_grad()
def passes(model: nn.Module, x: Tensor, count: int, seed: int) -> Tensor:
    """Return the logits (count, n, classes) of passes that drop other units each."""
    with seeded(seed), dropping(model):
        return torch.stack([model(x) for _ in range(count)])


def uncertainty(logits: Tensor) -> Tensor:
    """Return each sample's standard deviation of probabilities, root mean square over classes."""
    return logits.softmax(-1).var(0, correction=0).mean(-1).sqrt()


def told_apart(low: Tensor, high: Tensor) -> float:
    """Return the probability that one drawn of ``high`` is larger than one of ``low``: the AUC."""
    wins = (high[:, None] > low[None]).double() + 0.5 * (high[:, None] == low[None]).double()
    return float(wins.mean())


@experiments.register("mc-dropout")
class DropoutAtTestTime(Experiment):
    """`digits_cnn` with dropout of one half, few epochs; digits and noise are shown to it."""

    lecture = "Training in practice (lecture 3)"
    claim = "Dropout as an ensemble: test-time dropout for uncertainty estimation (Gal et al.)"
    source = "Gal and Ghahramani 2016; Srivastava et al. 2014"
    minutes = 0.5

    def measure(self, scale: Scale) -> Findings:
        """Compare means of k passes with evaluation, then spreads of right and wrong answers."""
        samples, (x, y) = digits("train"), digits("val")
        counts = scale.pick(PASSES[:6], PASSES)
        count = counts[-1]
        distances, slopes, still, rows = [], [], [], []
        errors, strangers, single, averaged = [], [], [], []
        for seed in scale.seeds:
            with seeded(seed):
                model = digits_cnn(drop=DROP)
            optimizer = SGD(model.parameters(), 0.05, 0.9)
            fit(model, samples, optimizer, 64, scale.pick(30, 150), seed)
            model.eval()
            with torch.no_grad():
                exact = model(x)
            drawn = passes(model, x, 2 * count, seed)
            # Non-overlapping means of k passes, as many as there are.
            distances.append(
                [
                    math.sqrt(float((drawn.unflatten(0, (-1, k)).mean(1) - exact).square().mean()))
                    for k in counts
                ]
            )
            logs = [math.log(d) for d in distances[-1]]
            slopes.append(straight_line([math.log(k) for k in counts], logs)[0])
            spreads = uncertainty(drawn[:count])
            wrong = exact.argmax(1) != y
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
            strange = uncertainty(passes(model, noise, count, seed))
            if wrong.any():
                errors.append(told_apart(spreads[~wrong], spreads[wrong]))
            strangers.append(told_apart(spreads[~wrong], strange))
            single.append(mean(float((d.argmax(1) == y).double().mean()) for d in drawn[:count]))
            of_mean = drawn[:count].softmax(-1).mean(0).argmax(1)
            averaged.append(float((of_mean == y).double().mean()))
            for layer in model.modules():
                if isinstance(layer, nn.Dropout):
                    layer.p = 0.0
            still.append(float(passes(model, x, 4, seed).var(0).max()))
            rows.append(
                {"seed": seed, "accuracy, evaluation": round(accuracy(model, (x, y)), 4),
                 "one pass": round(single[-1], 4), f"mean of {count}": round(averaged[-1], 4),
                 "spread, right": f"{float(spreads[~wrong].mean()):.4f}",
                 "wrong": f"{float(spreads[wrong].mean()):.4f}" if wrong.any() else "",
                 "noise": f"{float(strange.mean()):.4f}"}
            )  # fmt: skip
        checks = [
            Check("power of k in the distance of the mean of k passes to evaluation",
                  "-1/2: it tends to evaluation's output", spread(slopes),
                  all(abs(s + 0.5) < 0.05 for s in slopes), True),
            Check("variance at p = 0", "0", f"{max(still):g}", max(still) == 0.0, True),
            Check("mean of passes against one pass, accuracy", "better: an ensemble",
                  f"{spread(averaged)} against {spread(single)}",
                  agreed(a > b for a, b in zip(averaged, single, strict=True))),
            Check("spread tells wrong answers from right ones, AUC", "above 0.5",
                  spread(errors) if errors else "no answer was wrong",
                  agreed(auc > 0.5 for auc in errors)),
            Check("spread tells noise from digits, AUC", "above 0.5", spread(strangers),
                  agreed(auc > 0.5 for auc in strangers)),
        ]  # fmt: skip
        theory = [mean(d[0] for d in distances) / math.sqrt(k) for k in counts]
        series = [
            over_seeds("passes", counts, distances, "lines+markers"),
            over_seeds("1 / sqrt(k)", counts, [theory]),
        ]
        chart = (
            "Mean of k passes and evaluation",
            "root mean square distance of the logits; band: the seeds",
            lines("passes", "distance", series, log="xy"),
        )
        return Findings(checks, rows, [chart])
