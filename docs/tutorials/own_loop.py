"""Your own loop on MNIST: a batch of 4,096 with ghost batch norm and a scaled rate.

    python own_loop.py DATA [EPOCHS]

torchvision keeps MNIST in DATA/MNIST/raw, and downloads it there if it is absent.
"""

import sys

import torch
from torch.nn.functional import cross_entropy
from torchvision.datasets import MNIST

from largebatch.nn import convert_batch_norm, merge_running_stats
from largebatch.optim import SGD, clip_gradients, param_groups
from largebatch.schedule import scale_lr

BATCH, REFERENCE, GHOST = 4096, 128, 128


def pixels(root: str, train: bool) -> tuple[torch.Tensor, torch.Tensor]:
    data = MNIST(root, train=train, download=True)
    return data.data[:, None].float().sub(33.3).div(78.6), data.targets


def small_network() -> torch.nn.Sequential:
    nn = torch.nn
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 5), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 5), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(512, 10)),
    )


def main(root: str, epochs: int) -> None:
    torch.manual_seed(0)
    images, labels = pixels(root, train=True)
    test_images, test_labels = pixels(root, train=False)

    model = convert_batch_norm(small_network(), "ghost", ghost_size=GHOST)
    peak = scale_lr(0.05, batch=BATCH, reference=REFERENCE, rule="sqrt")
    optimizer = SGD(param_groups(model, weight_decay=1e-4), lr=peak, momentum=0.9)

    for epoch in range(epochs):
        model.train()
        order = torch.randperm(len(images))
        for start in range(0, len(images), BATCH):
            seen = epoch + start / len(images)  # in epochs: the rate follows samples, not steps
            warmup = min(1.0, seen + 0.1)  # from a tenth of the rate, over the first epoch
            for group in optimizer.param_groups:
                group["lr"] = peak * warmup * (1 - seen / epochs)
            chosen = order[start : start + BATCH]
            loss = cross_entropy(model(images[chosen]), labels[chosen])
            loss.backward()
            clip_gradients(optimizer, max_norm=5.0)  # step() applies the factor: no pass of its own
            optimizer.step()
            optimizer.zero_grad()

        merge_running_stats(model)  # before evaluation, on every rank
        model.eval()
        with torch.no_grad():
            right = (model(test_images).argmax(1) == test_labels).float().mean()
        print(f"epoch {epoch + 1}  loss {loss:.3f}  top1 {right:.2%}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 5)
