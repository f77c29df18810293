"""Batch norms at a large batch: F1 on MNIST at 4096, plain, ghost of every size, L1, bfloat16.

    python benchmarks/norms_f1_mnist.py --data=DATA --folder RUNS --json FILE

The recipe is `hoffer-f1-mnist-ghost` at a fifth of its length; only the norm and the precision
differ between rows. The sweep over ghost sizes at a fixed batch tests the lecture's claim that the
ghost size can be tuned by itself (Hoffer et al. 2017, section 5).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from largebatch._errors import UserError
from largebatch._paths import UserPath
from largebatch.cli import main
from largebatch.study import GridStudy

SHORT = ["--schedule.length=10ep", "--schedule.milestones=[2ep, 4ep, 6ep]"]
BFLOAT16 = "--precision.compute=bf16"


def ghost(kind: str, size: int) -> list[str]:
    """Return the settings of a norm over ghosts of ``size`` samples."""
    return [f"--norm.kind={kind}", f"--norm.ghost_size={size}"]


ROWS = {
    "batch": ["--norm.kind=batch", "--norm.ghost_size=null"],
    **{f"ghost {size}": ghost("ghost", size) for size in (16, 32, 64, 128, 256, 512, 1024, 4096)},
    "l1 ghost 128": ghost("l1", 128),
    "linf ghost 128": ghost("linf", 128),
    "topk ghost 128": ghost("topk", 128),
    "ghost 128, bf16": [*ghost("ghost", 128), BFLOAT16],
    "l1 ghost 128, bf16": [*ghost("l1", 128), BFLOAT16],
}


class Norms(GridStudy):
    """The same training with every norm of ``norms``, which are rows of `ROWS`."""

    formula = (
        "top-1 = right answers / 10,000 test images after the last epoch, in %, mean and standard "
        "deviation over seeds"
    )
    notes = ("batch 4096, 10 epochs, SGD 0.9, rate 0.1 times the root of 4096 / 128, clip 5.0",)
    record = "norms-f1-mnist"
    settings: Sequence[str] = ("--recipe=hoffer-f1-mnist-ghost", *SHORT)

    def __init__(
        self,
        data: UserPath,
        seeds: Sequence[int] = (0, 1, 2),
        norms: Sequence[str] = tuple(ROWS),
    ) -> None:
        unknown = [norm for norm in norms if norm not in ROWS]
        if unknown:
            raise UserError(f"--norms: {unknown[0]!r}: choose from {', '.join(map(repr, ROWS))}")
        cells = {norm: ROWS[norm] for norm in norms}
        base = [*self.settings, f"--data.root={data}"]
        super().__init__(cells, seeds, base, "top1", True, "norm", self.record)


if __name__ == "__main__":
    sys.exit(main(["study", "norms_f1_mnist:Norms", *sys.argv[1:]]))
