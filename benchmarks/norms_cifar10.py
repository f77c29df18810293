"""Batch norms at a large batch on CIFAR-10: ResNet-20, plain, ghost of 128, L1 with ghosts of 128.

    python benchmarks/norms_cifar10.py --data CIFAR --runs RUNS --json benchmarks/results/FILE.json

CIFAR is an .npz file as `data.name=arrays` takes it. One pass over the images for each of the nine
runs is what two processor cores allow (40 minutes of a core); on a GPU it is worth more epochs.
"""

from __future__ import annotations

from norms_f1_mnist import compare


def main() -> None:
    compare(
        __doc__.splitlines()[0],
        [
            "--data.name=arrays",
            "--model.name=cifar_resnet20",
            "--batch.size=512",
            "--optim.lr=0.4",
            "--optim.weight_decay=1e-4",
            "--schedule.length=1ep",
            "--schedule.warmup=10%",
        ],
        ["batch", "ghost 128", "l1 ghost 128"],
        "norms-cifar10",
        "ResNet-20, batch 512, one epoch (98 updates), SGD 0.9, rate 0.4 with warm-up and cosine",
    )


if __name__ == "__main__":
    main()
