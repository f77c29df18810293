"""Greedy layerwise learning: each layer is trained under a classifier of its own, then frozen.

Ivakhnenko and Lapa 1965; Belilovsky, Eickenberg, Oyallon 2019, "Greedy layerwise learning can scale
to ImageNet": k counts the layers that are trained at once, the auxiliary classifier's among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import torch
from torch import Tensor, nn

from largebatch.lab.descent import Model, accuracy, fit
from largebatch.lab.digits import CLASSES, Samples, digits
from largebatch.lab.experiment import Check, Experiment, Findings, Scale, experiments, spread
from largebatch.lab.networks import seeded
from largebatch.lab.paired import exceeds
from largebatch.lab.pictures import lines, over_seeds
from largebatch.models.layers import conv3x3, kaiming_fan_out
from largebatch.optim import SGD

CHANNELS = (16, 16, 32)
PRINTED = {1: 88.3, 2: 90.4, 3: 91.7}  # CIFAR-10, %, of Belilovsky's code
BATCH, RATE = 64, 0.1
NEAR = 0.01  # of accuracy: what "as good" may miss on 355 held-out digits


class Stage(nn.Module):
    """A convolution with norm and ReLU, and the classifier that it learns under.

    Args:
        hidden: convolutions of the classifier, k - 1.
    """

    def __init__(self, channels: int, out: int, stride: int, hidden: int) -> None:
        super().__init__()
        self.features = block(channels, out, stride)
        self.head = nn.Sequential(
            *(block(out, out, 1) for _ in range(hidden)),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(4 * out, CLASSES),
        )
        kaiming_fan_out(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of the stage's own classifier."""
        outputs: Tensor = self.head(self.features(x))
        return outputs


def block(channels: int, out: int, stride: int) -> nn.Sequential:
    """Return convolution, batch norm, ReLU."""
    return nn.Sequential(conv3x3(channels, out, stride), nn.BatchNorm2d(out), nn.ReLU())


def stages(seed: int, hidden: int, count: int = len(CHANNELS)) -> list[Stage]:
    """Build the network, stage by stage; the second halves the side."""
    widths = (1, *CHANNELS)
    with seeded(seed):
        return [Stage(widths[n], widths[n + 1], 1 + (n == 1), hidden) for n in range(count)]


def whole(network: Sequence[Stage]) -> nn.Sequential:
    """Return the features of all stages under the last one's classifier."""
    return nn.Sequential(*(stage.features for stage in network), network[-1].head)


def learn(model: Model, weights: nn.Module, train: Samples, seed: int, epochs: int) -> None:
    """Train some weights of a model by SGD with momentum, at a rate that falls to 0 in a line."""
    optimizer = SGD(weights.parameters(), lr=RATE, momentum=0.9)
    steps = epochs * (len(train[1]) // BATCH)
    fit(model, train, optimizer, BATCH, steps, seed, schedule=lambda done: 1 - done)


def greedily(seed: int, hidden: int, epochs: int) -> tuple[list[float], bool]:
    """Train stage after stage; return the accuracy after each, and whether the frozen ones kept
    every bit, running statistics among them."""
    train, val = digits("train"), digits("val")
    network, found, kept = stages(seed, hidden), [], True
    for number, stage in enumerate(network):
        below = nn.Sequential(*(each.features for each in network[:number])).eval()
        before = {name: value.clone() for name, value in below.state_dict().items()}

        def model(x: Tensor, stage: Stage = stage, below: nn.Module = below) -> Tensor:
            with torch.no_grad():
                x = below(x)
            return stage(x)

        learn(model, stage, train, seed, epochs)
        kept &= all(torch.equal(value, before[name]) for name, value in below.state_dict().items())
        found.append(accuracy(whole(network[: number + 1]).eval(), val))
    return found, kept


def end_to_end(seed: int, hidden: int, epochs: int, count: int = 3) -> float:
    """Return the accuracy of the same network trained as one, for as many steps a layer."""
    model = whole(stages(seed, hidden, count))
    learn(model, model, digits("train"), seed, epochs)
    return accuracy(model.eval(), digits("val"))


@experiments.register("greedy")
class GreedyLayerwise(Experiment):
    """Three convolutions on digits, one after the other, k = 1, 2, 3, beside training as one."""

    lecture = "Training in practice (lecture 3), optional: Local Learning"
    claim = "Sequentially learns each layer; recently shown to yield strong performance"
    source = "Belilovsky et al. 2019; CIFAR-10 88.3, 90.4, 91.7% for k = 1, 2, 3"
    minutes = 0.5
    seeds = 5

    def measure(self, scale: Scale) -> Findings:
        """Compare the depths, the classifiers and training as one, seed by seed."""
        epochs = scale.pick(2, 4)
        greedy = {k: [greedily(s, k - 1, epochs) for s in scale.seeds] for k in PRINTED}
        as_one = [end_to_end(seed, 0, epochs) for seed in scale.seeds]
        last = {k: [accuracies[-1] for accuracies, _ in runs] for k, runs in greedy.items()}
        first = [accuracies[0] for accuracies, _ in greedy[1]]
        kept = all(kept for runs in greedy.values() for _, kept in runs)
        checks = [
            Check("bits of frozen stages that training changed", "none",
                  "none" if kept else "some", kept, exact=True),
            Check("each stage adds: accuracy of the third over the first, k = 1", "higher",
                  f"{spread(last[1])} over {spread(first)}",
                  exceeds(last[1], first)),
            Check("a deeper classifier helps: k = 1, 2, 3", "88.3 < 90.4 < 91.7% (CIFAR-10)",
                  " ".join(f"{100 * fmean(last[k]):.1f}%" for k in PRINTED),
                  exceeds(last[3], last[1])),
            Check("accuracy as good as that of training as one, to 1 point",
                  "yes", f"{spread(last[1])} against {spread(as_one)}",
                  exceeds(last[1], as_one, -NEAR)),
        ]  # fmt: skip
        rows = [
            {"k": k, "seed": seed, **{f"stage {n}": round(a, 4) for n, a in enumerate(runs, 1)},
             "as one": round(one, 4)}
            for k, found in greedy.items()
            for seed, (runs, _), one in zip(scale.seeds, found, as_one, strict=True)
        ]  # fmt: skip
        picture = lines(
            "stages",
            "held-out accuracy",
            [over_seeds(f"k = {k}", (1, 2, 3), [r for r, _ in runs]) for k, runs in greedy.items()],
            levels={"trained as one": fmean(as_one)},
        )
        note = "range over seeds; each stage is trained, then frozen"
        said = f"{epochs} epochs a stage; after 12 every k is at 99%, where nothing is told apart"
        return Findings(checks, rows, [("Accuracy stage by stage", note, picture)], [said])
