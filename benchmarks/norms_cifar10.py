"""Batch norms at a large batch on CIFAR-10: ResNet-20, plain, ghost of 128, L1 with ghosts of 128.

    python benchmarks/norms_cifar10.py --data=CIFAR --folder RUNS --json FILE

CIFAR is an .npz file as `data.name=arrays` takes it. One pass over the images for each of the nine
runs is what two processor cores allow (40 minutes of a core); on a GPU it is worth more epochs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from norms_f1_mnist import Norms

from largebatch._paths import UserPath
from largebatch.cli import main


class CifarNorms(Norms):
    """ResNet-20 on CIFAR-10 with every norm of ``norms``."""

    notes = (
        "ResNet-20, batch 512, one epoch (98 updates), SGD 0.9, rate 0.4 with warm-up and cosine",
    )
    record = "norms-cifar10"
    settings = (
        "--data.name=arrays",
        "--model.name=cifar_resnet20",
        "--batch.size=512",
        "--optim.lr=0.4",
        "--optim.weight_decay=1e-4",
        "--schedule.length=1ep",
        "--schedule.warmup=10%",
    )

    def __init__(
        self,
        data: UserPath,
        seeds: Sequence[int] = (0, 1, 2),
        norms: Sequence[str] = ("batch", "ghost 128", "l1 ghost 128"),
    ) -> None:
        super().__init__(data, seeds, norms)


if __name__ == "__main__":
    sys.exit(main(["study", "norms_cifar10:CifarNorms", *sys.argv[1:]]))
