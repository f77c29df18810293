"""AlexNet's two towers over two ranks: one network whose layers are cut in two.

Krizhevsky et al. 2012, "ImageNet classification with deep convolutional neural networks", section
3.5: each GPU holds half of the kernels; they exchange activations in certain layers alone. What
comes of it is a network with grouped convolutions, which one process can hold.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from largebatch.lab.digits import digits
from largebatch.lab.experiment import Check, Experiment, Findings, Scale, experiments
from largebatch.lab.pictures import Series, lines
from largebatch.lab.ranks import on_ranks
from largebatch.lab.two_towers import ALEXNET, SMALL, TOWERS, Tower, exchanged, half, monolith
from largebatch.optim import SGD
from largebatch.processes import World

PRINTED = 60_965_224  # parameters of AlexNet of 2012 with its groups
BATCH = 32


def compare(world: World, steps: int) -> dict[str, float]:
    """Train the towers and, beside them, the monolith; return their largest differences."""
    torch.manual_seed(0)
    images, targets = digits("train", torch.float64)
    whole = monolith(SMALL, (64, 64, 10), (1, 8, 8)).double()
    tower = Tower(whole, world.rank)
    ours, theirs = (SGD(m.parameters(), lr=0.05, momentum=0.9) for m in (tower, whole))
    found = {"forward": 0.0, "backward": 0.0, "weights": 0.0, "towers": 0.0, "whole": 0.0}
    for step in range(steps):
        rows = torch.arange(step * BATCH, (step + 1) * BATCH) % len(targets)
        outputs = {}
        # The backward of a gather sums over the ranks: each answers for its share of the loss.
        for name, model, share in (("towers", tower, 1 / TOWERS), ("whole", whole, 1.0)):
            begun = time.perf_counter()
            model.zero_grad()
            outputs[name] = model(images[rows])
            (cross_entropy(outputs[name], targets[rows]) * share).backward()
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
