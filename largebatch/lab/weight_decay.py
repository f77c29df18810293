"""What weight decay does besides shrinking: the effective rate, the Jacobian, the training loss.

Zhang et al. 2018: before a batch norm only the direction of weights counts, and rate / |w|^2 is the
rate of the direction, which decay keeps up; without one it lowers the norm of the input-output
Jacobian. Hoffer et al. 2018: a rate corrected by |w|^2 / |w_decayed|^2 in place of decay gives the
same directions; exactly, with 1 - rate x decay in the denominator.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from largebatch.lab.decay_as_rate import directions, hidden
from largebatch.lab.descent import accuracy, descend, digits, network
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
from largebatch.optim import SGD

WIDTHS = (64, 64, 64, 10)
RATE, MOMENTUM, DECAY, BATCH, EVERY = 0.05, 0.9, 2e-3, 64, 15


@dataclass
class Path:
    """What is measured along a training.

    Attributes:
        rate: rate / |w|^2 of the hidden layers. jacobian: of logits by pixels, mean over images.
        loss: of the steps. train, held: accuracy at the end.
    """

    rate: list[float] = field(default_factory=list)
    jacobian: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    train: float = 0.0
    held: float = 0.0


def jacobian(model: nn.Module, images: Tensor) -> float:
    """Return the mean norm of the derivatives of an image's logits, in evaluation mode."""
    x, total = images.clone().requires_grad_(), torch.zeros(len(images))
    model.eval()
    for column in model(x).unbind(1):
        (slope,) = torch.autograd.grad(column.sum(), x, retain_graph=True)
        total += slope.flatten(1).square().sum(1)
    model.train()
    return float(total.sqrt().mean())


def walk(norm: bool, decay: float, seed: int, steps: int) -> Path:
    """Train a perceptron with decay on its weight matrices."""
    samples, held, path = digits("train"), digits("val"), Path()
    model = network(WIDTHS, seed, norm)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if (p.dim() > 1) == decays], "weight_decay": d}
        for decays, d in ((True, decay), (False, 0.0))
    ]
    optimizer = SGD(groups, RATE, MOMENTUM)
    for number, loss in enumerate(descend(model, samples, optimizer, BATCH, steps, seed)):
        path.loss.append(loss)
        if number % EVERY == 0 or number == steps - 1:
            squares = sum(float(layer.weight.detach().square().sum()) for layer in hidden(model))
            path.rate.append(RATE / squares * len(hidden(model)))
            path.jacobian.append(jacobian(model, held[0][:64]))
    model.eval()
    path.train, path.held = accuracy(model, samples), accuracy(model, held)
    return path


@experiments.register("wd-mech")
class WeightDecay(Experiment):
    """A perceptron on digits, with and without batch norm, with and without a decay of 0.002."""

    lecture = "Training in practice (lecture 3)"
    claim = "Decay: greater effective rate, smaller input-output Jacobian, better training accuracy"
    source = "Zhang et al. 2018, Three mechanisms; Krizhevsky et al. 2012; Hoffer et al. 2018"
    minutes = 0.5

    def measure(self, scale: Scale) -> Findings:
        """Compare the ends of the trainings seed by seed."""
        steps = scale.pick(240, 1500)
        found = {
            (norm, decay): [walk(norm == "batch norm", decay, s, steps) for s in scale.seeds]
            for norm in ("batch norm", "none")
            for decay in (0.0, DECAY)
        }
        exact = [directions(seed) for seed in scale.seeds]
        apart, cosine = (max(pair[n] for pair in exact) for n in (0, 1))
        identities = [
            Check(
                "before a batch norm: cosine of weights and gradient",
                "0: only the direction counts",
                f"{cosine:.1e}",
                cosine < 1e-9,
                True,
            ),
            Check(
                "directions under decay and under the corrected rate",
                "the same",
                f"{apart:.1e} apart after 30 steps",
                apart < 1e-9,
                True,
            ),
        ]
        checks = []
        for words, claimed, norm, value, larger in (
            ("effective rate at the end", "greater", "batch norm", "rate", True),
            ("Jacobian at the end, batch norm", "smaller", "batch norm", "jacobian", False),
            ("Jacobian at the end, no norm", "smaller", "none", "jacobian", False),
            ("loss of the last epoch, batch norm", "smaller", "batch norm", "loss", False),
            ("loss of the last epoch, no norm", "smaller", "none", "loss", False),
        ):
            ends = [[_end(p, value) for p in found[norm, decay]] for decay in (DECAY, 0.0)]
            held = agreed((a > b) == larger for a, b in zip(*ends, strict=True))
            compared = " against ".join(spread(each) for each in ends)
            checks.append(Check(f"{words}, with decay", claimed, compared, held))
        rows = [
            {
                "norm": norm,
                "decay": decay,
                "rate / |w|^2": spread([_end(p, "rate") for p in paths]),
                "Jacobian": spread([_end(p, "jacobian") for p in paths]),
                "training loss": spread([_end(p, "loss") for p in paths]),
                "training accuracy": spread([p.train for p in paths], 4),
                "held-out accuracy": spread([p.held for p in paths], 4),
            }
            for (norm, decay), paths in found.items()
        ]
        places = [*range(0, steps, EVERY)]
        places += [steps - 1] if (steps - 1) % EVERY else []
        charts = [
            (
                title,
                note,
                lines(
                    "step",
                    title.lower(),
                    [
                        over_seeds(
                            f"{norm}, decay {decay:g}", places, [getattr(p, what) for p in f]
                        )
                        for (norm, decay), f in found.items()
                    ],
                    log="y",
                ),
            )
            for title, note, what in (
                ("Effective rate", "rate over the mean |w|^2 of a hidden layer", "rate"),
                ("Jacobian", "norm of the logits' derivatives by pixels, held-out", "jacobian"),
            )
        ]
        return Findings([*checks, *identities], rows, charts)


def _end(path: Path, value: str) -> float:
    """Return a figure at the end; of the loss the mean of an epoch."""
    if value == "loss":
        return sum(path.loss[-22:]) / 22
    end: float = getattr(path, value)[-1]
    return end
