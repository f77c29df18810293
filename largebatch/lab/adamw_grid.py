"""AdamW against Adam with an L2 penalty, over rates and decays.

Loshchilov and Hutter 2019, "Decoupled weight decay regularization", figure 2: Adam's basin of good
settings lies across the axes, AdamW's along them, so that rate and decay can be tuned one by one.
As there the decay is multiplied by the schedule and not by the rate itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from largebatch.lab.descent import accuracy, fit
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
from largebatch.lab.pictures import heat
from largebatch.lab.whole_batch import WholeBatch
from largebatch.optim import SGD, SGDW

WIDTHS = (64, 64, 10)
KINDS = {"Adam, L2": torch.optim.Adam, "AdamW": torch.optim.AdamW}
BASIN = 0.2  # of all settings: the best


def shrunk(steps: int = 20) -> float:
    """Return how far AdamW without gradients is from theta_0 prod(1 - rate_t decay), relative."""
    theta = torch.ones(3, dtype=torch.float64, requires_grad=True)
    optimizer, expected = torch.optim.AdamW([theta], lr=0.1, weight_decay=0.3), 1.0
    for number in range(steps):
        rate = 0.1 * (1 + math.cos(math.pi * number / steps)) / 2
        optimizer.param_groups[0]["lr"] = rate
        theta.grad = torch.zeros_like(theta)
        optimizer.step()
        expected *= 1 - rate * 0.3
    return float((theta.detach() / expected - 1).abs().max())


def apart(momentum: float, steps: int = 20) -> float:
    """Return how far SGD with L2 ends from SGD with decoupled decay, on a quadratic, relative."""
    ends = []
    for kind in (SGD, SGDW):
        theta = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
        optimizer = kind([theta], lr=0.1, momentum=momentum, weight_decay=0.05)
        for _ in range(steps):
            theta.grad = theta.detach() * torch.tensor([1.0, 3.0], dtype=torch.float64)
            optimizer.step()
        ends.append(theta.detach())
    return float((ends[0] - ends[1]).norm() / ends[1].norm())


def slant(rates: Sequence[float], decays: Sequence[float], losses: np.ndarray) -> float:
    """Return the correlation of log rate and log decay over the basin: 0 of one along the axes."""
    edge = np.sort(losses, axis=None)[max(3, round(BASIN * losses.size)) - 1]
    row, column = np.nonzero(losses <= edge * (1 + 1e-9))  # all that are as good as the last
    x, y = np.log(rates)[row], np.log(decays)[column]
    if x.std() == 0 or y.std() == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


@experiments.register("adamw-grid")
class DecoupledDecay(Experiment):
    """Trains a perceptron on few digits at each rate and decay."""

    lecture = "Optimization Techniques (KAIST AI602)"
    claim = "L2 is weight decay for SGD alone; the proposed AdamW outperforms Adam"
    source = "Loshchilov and Hutter 2019, propositions 1 and 2, figure 2"
    minutes = 0.8

    def measure(self, scale: Scale) -> Findings:
        """Take the held-out loss at the end of a cosine; both kinds have the same grid."""
        inputs, targets = digits("train")
        train, held_out = (inputs[:200], targets[:200]), (inputs[200:], targets[200:])
        steps = scale.pick(80, 300)
        rates = scale.pick((1e-3, 1e-2), tuple(1e-3 * 10 ** (k / 2) for k in range(5)))
        decays = tuple(10.0**k for k in scale.pick((-4, -3, -2), (-5, -4.5, -4, -3.5, -3, -2.5,
                                                                  -2, -1.5, -1)))  # fmt: skip
        rows, tables = list[dict[str, float | str]](), dict[str, list[np.ndarray]]()
        best, errors = dict[str, list[float]](), dict[str, list[float]]()
        for name in KINDS:
            tables[name], best[name], errors[name] = [], [], []
            for seed in scale.seeds:
                found = [[self._end(name, rate, decay, train, held_out, steps, seed)
                          for decay in decays] for rate in rates]  # fmt: skip
                table = np.array(found)
                losses = np.where(np.isfinite(table[..., 0]), table[..., 0], np.inf)
                row, column = np.unravel_index(losses.argmin(), losses.shape)
                tables[name].append(losses)
                best[name].append(float(losses.min()))
                errors[name].append(float(table[..., 1].min()))
                rows.append({"optimizer": name, "seed": seed, "loss": best[name][-1],
                             "error": errors[name][-1], "rate": rates[row],
                             "decay": decays[column],
                             "slant": slant(rates, decays, losses)})  # fmt: skip
        slants = [[slant(rates, decays, table) for table in tables[name]] for name in KINDS]
        ratios = [b / a for a, b in zip(*best.values(), strict=True)]
        gains = [a - b for a, b in zip(*errors.values(), strict=True)]
        plain, heavy = apart(0.0), apart(0.9)
        checks = [
            Check("least held-out loss, AdamW over Adam", "below 1", spread(ratios),
                  agreed(ratio < 1 for ratio in ratios)),
            Check("least held-out error, Adam less AdamW", "above 0", spread(gains),
                  agreed(gain > 0 for gain in gains)),
            Check("slant of AdamW's basin, less than Adam's", "yes",
                  f"{spread(slants[1])} against {spread(slants[0])}",
                  agreed(abs(w) < abs(a) for a, w in zip(*slants, strict=True))),
            Check("AdamW without gradients against theta_0 prod(1 - rate decay)", "0 (to 1e-12)",
                  f"{shrunk():.1e}", shrunk() < 1e-12, exact=True),
            Check("plain SGD, L2 against decoupled decay", "0 (to 1e-12)", f"{plain:.1e}",
                  plain < 1e-12, exact=True),
            Check("SGD with momentum, L2 against decoupled decay", "differ: over 1e-3",
                  f"{heavy:.1e}", heavy > 1e-3, exact=True),
        ]  # fmt: skip
        charts = [
            (f"Held-out loss, {name}", "mean over seeds, at most 1",
             heat("decay", "rate", decays, rates,
                  np.minimum(np.mean(tables[name], axis=0), 1).tolist(), log="xy", unit="loss"))
            for name in KINDS
        ]  # fmt: skip
        note = (
            f"200 digits to train with, {len(held_out[1])} held out; batch 32, {steps} steps,"
            f" cosine. The basin: the best {BASIN:.0%} of the settings; its slant is the"
            " correlation of log rate and log decay there."
        )
        return Findings(checks, rows, charts, [note])

    def _end(
        self, name: str, rate: float, decay: float, train: Samples, held_out: Samples,
        steps: int, seed: int,
    ) -> tuple[float, float]:  # fmt: skip
        """Return loss and error of what is held out."""
        model = perceptron(WIDTHS, seed)
        scaled = decay / rate if name == "AdamW" else decay  # torch's is multiplied by the rate
        optimizer = KINDS[name](model.parameters(), lr=rate, weight_decay=scaled)
        fit(model, train, optimizer, 32, steps, seed,
            schedule=lambda done: (1 + math.cos(math.pi * done)) / 2)  # fmt: skip
        return float(WholeBatch(model, held_out).loss()), 1 - accuracy(model, held_out)
