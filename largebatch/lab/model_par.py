"""AlexNet's two towers over two ranks: one network whose layers are cut in two.

Krizhevsky et al. 2012, "ImageNet classification with deep convolutional neural networks", section
3.5: each GPU holds half of the kernels; they exchange activations in certain layers alone. What
comes of it is a network with grouped convolutions, which one process can hold.
"""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from largebatch.lab.digits import Digits
from largebatch.lab.experiment import Check, Experiment, Findings, Scale, experiments
from largebatch.lab.pictures import Series, lines
from largebatch.lab.ranks import on_ranks
from largebatch.optim import SGD
from largebatch.processes import World

# Of each convolution: kernels, side, stride, padding, groups, and whether a pooling follows.
SMALL = ((16, 3, 1, 1, 1, True), (32, 3, 1, 1, 2, False), (48, 3, 1, 1, 1, False),
         (48, 3, 1, 1, 2, False), (32, 3, 1, 1, 2, True))  # fmt: skip
ALEXNET = ((96, 11, 4, 0, 1, True), (256, 5, 1, 2, 2, True), (384, 3, 1, 1, 1, False),
           (384, 3, 1, 1, 2, False), (256, 3, 1, 1, 2, True))  # fmt: skip
PRINTED = 60_965_224  # parameters of AlexNet of 2012 with its groups
TOWERS, BATCH = 2, 32


def monolith(
    convolutions: tuple[tuple[Any, ...], ...], dense: tuple[int, ...], image: tuple[int, int, int]
) -> nn.Sequential:
    """Build the network that the towers are together; a layer without groups sees both."""
    layers: list[nn.Module] = []
    channels, side, _ = image
    for out, kernel, stride, padding, groups, pooled in convolutions:
        layers += [nn.Conv2d(channels, out, kernel, stride, padding, groups=groups), nn.ReLU()]
        channels, side = out, (side + 2 * padding - kernel) // stride + 1
        if pooled:
            layers.append(nn.MaxPool2d(3, 2))
            side = (side - 3) // 2 + 1
    layers.append(nn.Flatten())
    features = channels * side * side
    for out in dense:
        layers += [nn.Linear(features, out), nn.ReLU()]
        features = out
    return nn.Sequential(*layers[:-1])


def crossing(whole: nn.Sequential) -> list[int]:
    """Return the numbers of the layers that see both towers: weights without groups."""
    weighty = [n for n, layer in enumerate(whole) if list(layer.parameters())]
    return [n for n in weighty[1:] if getattr(whole[n], "groups", 1) == 1]


class Tower(nn.Module):
    """One rank's half of every layer of the monolith; gathers where a layer sees both halves."""

    def __init__(self, whole: nn.Sequential, rank: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(halved(layer, rank) for layer in whole)
        self.crossing = crossing(whole)

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers):
            x = layer(_Gather.apply(x) if number in self.crossing else x)
        return _Gather.apply(x)


class _Gather(torch.autograd.Function):
    """Puts the halves of all ranks together; what flows back is summed over the ranks."""

    @staticmethod
    def forward(_: Any, mine: Tensor) -> Tensor:
        halves = [torch.empty_like(mine) for _ in range(TOWERS)]
        dist.all_gather(halves, mine.contiguous())
        return torch.cat(halves, 1)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        parts = gradient.contiguous()
        dist.all_reduce(parts)
        return parts.chunk(TOWERS, 1)[dist.get_rank()]


def halved(layer: nn.Module, rank: int) -> nn.Module:
    """Return a copy of ``layer`` with half of its outputs, which a group's layer makes of half of
    the inputs."""
    new = copy.deepcopy(layer)
    for name, value in layer.named_parameters():
        setattr(new, name, nn.Parameter(half(value.detach(), rank).clone()))
    if isinstance(new, nn.Conv2d):
        new.groups = 1
    return new


def half(value: Tensor, rank: int) -> Tensor:
    """Return the rows of a weight, or of its gradient, that are a tower's."""
    return value.chunk(TOWERS)[rank]


def compare(world: World, steps: int) -> dict[str, float]:
    """Train the towers and, beside them, the monolith; return their largest differences."""
    torch.manual_seed(0)
    digits = Digits.load(torch.float64)
    whole = monolith(SMALL, (64, 64, 10), (1, 8, 8)).double()
    tower = Tower(whole, world.rank)
    ours, theirs = (SGD(m.parameters(), lr=0.05, momentum=0.9) for m in (tower, whole))
    found = {"forward": 0.0, "backward": 0.0, "weights": 0.0, "towers": 0.0, "whole": 0.0}
    for step in range(steps):
        rows = torch.arange(step * BATCH, (step + 1) * BATCH) % len(digits.targets)
        images, targets = digits.images[rows], digits.targets[rows]
        outputs = {}
        # The backward of a gather sums over the ranks: each answers for its share of the loss.
        for name, model, share in (("towers", tower, 1 / TOWERS), ("whole", whole, 1.0)):
            begun = time.perf_counter()
            model.zero_grad()
            outputs[name] = model(images)
            (cross_entropy(outputs[name], targets) * share).backward()
            found[name] += (time.perf_counter() - begun) / steps
        found["forward"] = max(found["forward"], apart(outputs["towers"], outputs["whole"]))
        for mine, its in zip(tower.parameters(), whole.parameters(), strict=True):
            assert mine.grad is not None
            assert its.grad is not None
            found["backward"] = max(found["backward"], apart(mine.grad, half(its.grad, world.rank)))
        ours.step()
        theirs.step()
    for mine, its in zip(tower.parameters(), whole.parameters(), strict=True):
        found["weights"] = max(found["weights"], apart(mine, half(its, world.rank)))
    held = sum(p.numel() for p in tower.parameters()) / sum(p.numel() for p in whole.parameters())
    return {**found, "held": held}


def apart(a: Tensor, b: Tensor) -> float:
    """Return the largest difference, relative to the largest value."""
    return float(((a - b).abs().max() / b.abs().max()).detach())


def exchanged(whole: nn.Sequential, image: tuple[int, int, int]) -> tuple[int, int]:
    """Return (parameters, activations of one sample that the towers gather)."""
    gathered, x = 0, torch.empty(1, *image, device="meta")
    for number, layer in enumerate(whole):
        gathered += x.numel() * (number in crossing(whole))
        x = layer(x)
    return sum(p.numel() for p in whole.parameters()), gathered + x.numel()


@experiments.register("model-par")
class ModelParallel(Experiment):
    """Two towers on two real ranks are the grouped network, in every step of training."""

    lecture = "Rethinking Common Practices in Deep Learning (Hoffer); Train longer (Hoffer)"
    claim = "Model parallelism splits the model over the same data (AlexNet, on two GPUs)"
    source = "Krizhevsky et al. 2012, section 3.5; Krizhevsky 2014 for where it pays"
    minutes = 0.2

    def measure(self, scale: Scale) -> Findings:
        """Compare outputs, gradients and trained weights; count what either division sends."""
        ranks = on_ranks(TOWERS, compare, scale.pick(5, 200))
        checks = [
            Check(f"{name} of two towers and of the grouped network", "equal",
                  f"{worst:.1e} apart", worst < 1e-9, exact=True)
            for name, key in (("outputs", "forward"), ("gradients", "backward"),
                              ("trained weights", "weights"))
            for worst in [max(rank[key] for rank in ranks)]
        ]  # fmt: skip
        held = max(rank["held"] for rank in ranks)
        with torch.device("meta"):
            alexnet = monolith(ALEXNET, (4096, 4096, 1000), (3, 227, 227))
        parameters, activations = exchanged(alexnet, (3, 227, 227))
        checks += [
            Check("parameters that a rank holds", "half", f"{held:.4f}", held == 0.5, exact=True),
            Check("parameters of AlexNet with its groups", f"{PRINTED:,}", f"{parameters:,}",
                  parameters == PRINTED, exact=True),
            Check("numbers sent a step at AlexNet's batch of 128", "fewer than dividing the data",
                  f"{128 * activations:,} of activations, {parameters:,} of gradients",
                  128 * activations < parameters),
        ]  # fmt: skip
        # Of two ranks each sends every gradient once in a ring; each activation once in a gather
        # and the sum that is its backward, of which it needs the other's half alone.
        rows = [
            {"batch": batch, "sent if the model is divided": batch * activations,
             "sent if the data are": parameters}
            for batch in (64, 128, 256, 512, 1024, 2048)
        ]  # fmt: skip
        batches, *sent = zip(*(row.values() for row in rows), strict=True)
        names = ("the model divided", "the data divided")
        curves = [Series(name, batches, many) for name, many in zip(names, sent, strict=True)]
        picture = lines("batch", "numbers", curves, "x")
        note = "AlexNet of 2012 over two ranks: what each sends in a step"
        times = " and ".join(f"{1e3 * ranks[0][way]:.1f} ms ({way})" for way in ("towers", "whole"))
        notes = [
            f"the two ways cross at a batch of {parameters / activations:,.0f}",
            f"a pass forward and back on digits, two processes here: {times}",
        ]
        return Findings(checks, rows, [("Dividing the model or the data", note, picture)], notes)
