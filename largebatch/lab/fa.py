"""Feedback alignment: errors go down by fixed random matrices in place of the weights' transposes.

Lillicrap, Cownden, Tweed, Akerman 2016, "Random synaptic feedback weights support error
backpropagation for deep learning", Nature Communications 7:13276.
"""

from __future__ import annotations

from statistics import fmean

import torch

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
from largebatch.lab.feedback import WIDTHS, Perceptron, gaussians, learn
from largebatch.lab.paired import exceeds
from largebatch.lab.pictures import lines, over_seeds

NEAR = 0.01  # of accuracy


def same_as_autograd() -> float:
    """Return the angle between autograd's gradient and ours with the weights as feedback."""
    network, batch = Perceptron.drawn(0), digits("train", torch.float64, limit=32)
    for weight in network.weights:
        weight.requires_grad_()
    loss = torch.nn.functional.cross_entropy(network(batch[0]), batch[1])
    theirs = torch.autograd.grad(loss, network.weights)
    with torch.no_grad():
        ours = network.gradients(*batch, network.weights[1:])
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))


@experiments.register("fa")
class FeedbackAlignment(Experiment):
    """A perceptron of two hidden layers on digits, beside backpropagation and fixed features."""

    lecture = "Training in practice (lecture 3), optional: FeedBack Alignment"
    claim = "Use a random matrix B_j for the backward pass: the network learns to learn from it"
    source = "Lillicrap et al. 2016: the angle to backpropagation falls below 90 degrees"
    minutes = 0.5
    seeds = 5

    def measure(self, scale: Scale) -> Findings:
        """Follow the angle to the gradient, and compare accuracies, seed by seed."""
        epochs = scale.pick(4, 30)
        shapes = list(zip(WIDTHS[2:], WIDTHS[1:-1], strict=True))
        random = [learn(s, epochs, gaussians(1000 + s, shapes)) for s in scale.seeds]
        back = [learn(s, epochs, None)[0] for s in scale.seeds]
        fixed = [learn(s, epochs, None, hidden=False)[0] for s in scale.seeds]
        off = same_as_autograd()
        return report(scale, off, "with B = W transposed, ours less backpropagation's",
                      random, back, fixed)  # fmt: skip


def report(
    scale: Scale,
    off: float,
    identity: str,
    random: list[tuple[float, list[float]]],
    back: list[float],
    fixed: list[float],
) -> Findings:
    """Put accuracies and angles of one way of feedback beside backpropagation and none."""
    found = [accuracy for accuracy, _ in random]
    start, end = ([angles[place] for _, angles in random] for place in (0, -1))
    checks = [
        Check(f"gradient {identity}", "0", f"{off:.1e}", off < 1e-12, exact=True),
        Check("angle between update and gradient of the hidden layers, at the end",
              "below 90 degrees", spread(end), agreed(a < 90 for a in end)),
        Check("that angle falls", "from about 90", f"{spread(start)} to {spread(end)}",
              agreed(b < a for a, b in zip(start, end, strict=True))),
        Check("held-out accuracy over that of fixed random features", "higher",
              f"{spread(found)} against {spread(fixed)}",
              exceeds(found, fixed)),
        Check("accuracy as good as backpropagation's, to 1 point", "yes",
              f"{spread(found)} against {spread(back)}",
              exceeds(found, back, -NEAR)),
    ]  # fmt: skip
    rows = [
        {"seed": seed, "random feedback": round(a, 4), "backprop": round(b, 4),
         "fixed features": round(c, 4), "angle at start": round(angles[0], 1),
         "angle at end": round(angles[-1], 1)}
        for seed, (a, angles), b, c in zip(scale.seeds, random, back, fixed, strict=True)
    ]  # fmt: skip
    runs = [angles for _, angles in random]
    curve = over_seeds("hidden layers", range(len(runs[0])), runs)
    picture = lines("epochs", "degrees", [curve], levels={"at random": 90.0})
    note = f"between update and gradient; mean of {fmean(end):.0f} degrees at the end"
    return Findings(checks, rows, [("Angle to backpropagation", note, picture)])
