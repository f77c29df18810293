"""Batch-channel norm beside ghost batch norm and group norm, as ghosts shrink.

Qiao et al. 2019: if a batch norm has few samples, its statistics in training and in evaluation
differ. A channel that the next ReLU always cuts off is lost. A channel norm after the batch norm
keeps every group of every sample alive.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from largebatch.lab.experiment import (
    Check,
    Experiment,
    Findings,
    Scale,
    agreed,
    experiments,
    spread,
)
from largebatch.lab.group_or_batch_norm import digits_error
from largebatch.lab.pictures import lines, over_seeds
from largebatch.nn import BatchChannelNorm, GhostBatchNorm

BATCH, GROUPS = 64, 8
KINDS = {
    "ghost batch norm": ("--norm.kind=ghost",),
    "group norm": ("--norm.kind=group", f"--norm.groups={GROUPS}"),
    "batch-channel norm": ("--norm.kind=batch_channel", f"--norm.groups={GROUPS}"),
}


def composed(seed: int) -> tuple[float, float]:
    """Return how far the module is from a group norm of a ghost batch norm, and from forgetting.

    The second is how far the output moves in evaluation when running statistics are off by factors
    of 2 to 4 that the channels of a group share.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(12, 16, 4, 4, generator=generator, dtype=torch.float64)
    norm = BatchChannelNorm(16, 4, 4, eps=1e-12, dtype=torch.float64)
    ghost = GhostBatchNorm(16, 4, eps=1e-12, dtype=torch.float64)
    apart = float((norm(x) - F.group_norm(ghost(x), 4, eps=1e-12)).abs().max().detach())
    norm.eval()
    before = norm(x)
    assert norm.running_var is not None and norm.running_mean is not None
    factors = 2 + 2 * torch.rand(4, generator=generator, dtype=torch.float64)
    norm.running_var.mul_(factors.square().repeat_interleave(4))
    return apart, float((norm(x) - before).abs().max().detach())


@experiments.register("bcn")
class BatchChannel(Experiment):
    """`digits_cnn` at batch 64, ghosts of 2 to 64 samples, one rate for all kinds and ghosts."""

    lecture = "Optimization Techniques (KAIST AI602)"
    claim = (
        "Micro-batch training: batch-channel norm reaches with few samples what BN does with many"
    )
    source = "Qiao et al. 2019, sections 4 and 5"
    minutes = 2.0

    def measure(self, scale: Scale) -> Findings:
        """Compare errors at the smallest ghost with batch norm's at the largest."""
        ghosts, epochs = scale.pick(((2, 64), 1), ((2, 4, 16, 64), 5))
        errors: dict[tuple[str, int], list[float]] = {}
        for name, more in KINDS.items():
            for size in ghosts[:1] if name == "group norm" else ghosts:
                own = () if name == "group norm" else (f"--norm.ghost_size={size}",)
                errors[name, size] = [
                    digits_error(BATCH, 1.0, epochs, seed, (*more, *own)) for seed in scale.seeds
                ]
        for size in ghosts[1:]:  # a group norm knows no ghosts
            errors["group norm", size] = errors["group norm", ghosts[0]]
        exact = [composed(seed) for seed in scale.seeds]
        apart, moved = (max(pair[n] for pair in exact) for n in (0, 1))
        few, many = ghosts[0], ghosts[-1]
        identities = [
            Check(
                "distance from a group norm after a ghost batch norm",
                "0",
                f"{apart:.1e}",
                apart < 1e-9,
                True,
            ),
            Check(
                "evaluation when a group's running statistics are off by a factor",
                "unchanged: the channel part divides it out",
                f"moves by {moved:.1e}",
                moved < 1e-9,
                True,
            ),
        ]
        checks = []
        for words, first, second in (
            (f"error %, batch-channel at {few} against batch norm at {few}", few, few),
            (f"error %, batch-channel at {few} against batch norm at {many}", few, many),
        ):
            a, b = errors["batch-channel norm", first], errors["ghost batch norm", second]
            held = agreed(x <= y for x, y in zip(a, b, strict=True))
            compared = " against ".join(spread([100 * e for e in each]) for each in (a, b))
            checks.append(Check(words, "no more", compared, held))
        rows = [
            {"norm": name, "ghost": size, "error %": spread([100 * e for e in found])}
            for (name, size), found in errors.items()
        ]
        series = [
            over_seeds(
                name,
                ghosts,
                list(zip(*(errors[name, size] for size in ghosts), strict=True)),
                "lines+markers",
            )
            for name in KINDS
        ]
        note = f"batch {BATCH}, {epochs} epochs; band: the seeds"
        chart = ("Error by ghost", note, lines("ghost", "error", series, log="x", percent=True))
        notes = [
            "two images of 8x8 are 128 values a channel: statistics over them are far from those of"
            " two images in the paper's last stages of 7x7"
        ]
        return Findings([*checks, *identities], rows, [chart], notes)
