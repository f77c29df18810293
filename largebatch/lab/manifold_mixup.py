"""Mixup of hidden states beside mixup of the inputs and none.

Verma et al. 2019: samples and their classes are mixed after a block drawn for each batch. Mixing
with a share of 1 leaves every state as it is, wherever that is done.
"""

from __future__ import annotations

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
from largebatch.lab.networks import seeded
from largebatch.lab.pictures import lines, over_seeds
from largebatch.lab.short_run import digits_run
from largebatch.models.digits_cnn import digits_cnn
from largebatch.nn import hidden_mixing, mix_blocks

BLOCKS = [2, 6, 9]  # after the first ReLU, the first pooling and the third ReLU
KINDS = {
    "no mixup": (),
    "mixup of inputs": ("--data.mixup=1",),
    "manifold mixup": ("--data.mixup=1", "--data.mixup_layers=[input,2,6,9]"),
}


def identity(seed: int) -> float:
    """Return how far logits move when states are mixed with a share of 1, the farthest block's."""
    with seeded(seed), torch.no_grad():
        model = digits_cnn()
        x = digits("train", limit=32)[0]
        partners, ones, farthest = torch.randperm(len(x)), torch.ones(len(x)), 0.0
        before = model(x)
        mix_blocks(model, BLOCKS)
        for number in range(len(BLOCKS)):
            with hidden_mixing(partners, {number: ones}):
                farthest = max(farthest, float((model(x) - before).abs().max()))
    return farthest


def figures(images: int, epochs: int, seed: int, more: tuple[str, ...]) -> tuple[float, float]:
    """Return the error and the loss on the held-out digits, of a run on so many digits."""
    few = (f"--data.limit={images}", "--batch.size=32", "--optim.weight_decay=1e-4")
    summary = digits_run(epochs, seed, (*few, "--optim.lr=0.05", *more))
    return 1.0 - float(summary["top1"]), float(summary["loss"])


@experiments.register("manifold-mix")
class ManifoldMixup(Experiment):
    """`digits_cnn` on a few digits, so that there is something to regularise."""

    lecture = "Training in practice (lecture 3)"
    claim = "Manifold Mixup: mixup in intermediate layers"
    source = "Verma et al. 2019, section 2 and table 1: below mixup's error, and both below none's"
    minutes = 1.5

    def measure(self, scale: Scale) -> Findings:
        """Compare errors by the number of training digits, seed by seed at the fewest."""
        sizes, epochs = scale.pick(((100,), 4), ((100, 200, 400), 40))
        found = {
            (name, size): [figures(size, epochs, seed, more) for seed in scale.seeds]
            for name, more in KINDS.items()
            for size in sizes
        }
        moved = max(identity(seed) for seed in scale.seeds)
        few, checks = sizes[0], []
        for first, second in (
            ("manifold mixup", "mixup of inputs"),
            ("manifold mixup", "no mixup"),
            ("mixup of inputs", "no mixup"),
        ):
            pairs = list(zip(found[first, few], found[second, few], strict=True))
            compared = " against ".join(spread([100 * p[n][0] for p in pairs]) for n in (0, 1))
            held = agreed(a[0] < b[0] for a, b in pairs)
            checks.append(Check(f"error %, {first} against {second}", "smaller", compared, held))
        what = "mixing with a share of 1, any block"
        checks.append(Check(what, "the identity", f"{moved:g}", moved == 0.0, True))
        rows = [
            {
                "mixup": name,
                "digits": size,
                "error %": spread([100 * error for error, _ in ends]),
                "loss": spread([loss for _, loss in ends]),
            }
            for (name, size), ends in found.items()
        ]
        series = [
            over_seeds(
                name,
                sizes,
                list(zip(*([e for e, _ in found[name, size]] for size in sizes), strict=True)),
                "lines+markers",
            )
            for name in KINDS
        ]
        note = f"{epochs} epochs of so many digits; held-out; band: the seeds"
        chart = ("Error by digits seen", note, lines("digits", "error", series, percent=True))
        return Findings(checks, rows, [chart])
