"""Direct feedback alignment: each layer gets the output's error through its own random matrix.

Noekland 2016, "Direct feedback alignment provides learning in deep neural networks". The slide
prints the error alone, v = grad l, which has the width of the outputs; a layer of another width
needs the matrix B_j of the paper.
"""

from __future__ import annotations

import torch

from largebatch.lab.digits import CLASSES, digits
from largebatch.lab.experiment import Experiment, Findings, Scale, experiments
from largebatch.lab.fa import report
from largebatch.lab.feedback import WIDTHS, Perceptron, gaussians, learn


def same_as_backpropagation() -> float:
    """Return the largest difference from the gradient where both must agree: a linear network,
    B_j the product of the weights above layer j."""
    network = Perceptron.drawn(0, linear=True)
    above = [network.weights[-1]]
    for weight in network.weights[-2:0:-1]:
        above.insert(0, above[0] @ weight)
    batch = digits("train", torch.float64, limit=32)
    ours = network.gradients(*batch, above, direct=True)
    theirs = network.backpropagated(*batch)
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))


@experiments.register("dfa")
class DirectFeedbackAlignment(Experiment):
    """A perceptron of two hidden layers on digits, beside backpropagation and fixed features."""

    lecture = "Training in practice (lecture 3), optional: FeedBack Alignment"
    claim = "Direct feedback alignment: use v = the gradient at the output in every layer"
    source = "Noekland 2016, section 3"
    minutes = 0.5
    seeds = 5

    def measure(self, scale: Scale) -> Findings:
        """Follow the angle to the gradient, and compare accuracies, seed by seed."""
        epochs = scale.pick(4, 30)
        shapes = [(CLASSES, width) for width in WIDTHS[1:-1]]
        random = [
            learn(seed, epochs, gaussians(1000 + seed, shapes), direct=True) for seed in scale.seeds
        ]
        back = [learn(seed, epochs, None)[0] for seed in scale.seeds]
        fixed = [learn(seed, epochs, None, hidden=False)[0] for seed in scale.seeds]
        identity = "of a linear network with B_j = the weights above, less backpropagation's"
        return report(scale, same_as_backpropagation(), identity, random, back, fixed)
