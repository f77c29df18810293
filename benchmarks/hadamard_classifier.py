"""The Hadamard classifier's product by the fast transform, against a dense matrix product.

    python benchmarks/hadamard_classifier.py --json benchmarks/results/FILE.json

Both go through autograd as in training. The dense product is that of a learned classifier, whose
weight has a gradient too, and beside it that of a stored Hadamard matrix, which has none.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from largebatch._ops import hadamard
from largebatch.record import BenchmarkRecord, write_record

# (features, classes) of CIFAR-10 and ImageNet networks, and of many classes.
SIZES = ((64, 10), (512, 10), (2048, 1000), (1280, 1000), (4096, 4096))
FORMULA = (
    "ms: forward + backward of (batch, features) -> (batch, classes), median over rounds; times "
    "learned, times stored = median over rounds of (the dense product's ms / the transform's ms, "
    "same round); MB: weights and their gradient that the form keeps (learned), stores (matrix)"
)


def measure(batch: int, features: int, classes: int, rounds: int) -> dict[str, Any]:
    """Return one row of the table, having checked that transform and matrix agree."""
    x = torch.randn(batch, features, device=DEVICE, requires_grad=True)
    learned = torch.randn(classes, features, device=DEVICE, requires_grad=True)
    rows = hadamard(torch.eye(features, device=DEVICE), classes).T.contiguous()
    grad = torch.randn(batch, classes, device=DEVICE)
    torch.testing.assert_close(hadamard(x, classes), F.linear(x, rows), rtol=1e-3, atol=1e-2)
    forms: dict[str, tuple[Callable[[], Tensor], list[Tensor]]] = {
        "transform": (lambda: hadamard(x, classes), [x]),
        "learned": (lambda: F.linear(x, learned), [x, learned]),
        "stored": (lambda: F.linear(x, rows), [x]),
    }
    times: dict[str, list[float]] = {name: [] for name in forms}
    for number in range(rounds + 1):
        for name, (forward, wanted) in list(forms.items())[:: 1 if number % 2 else -1]:
            wait()
            begun = time.perf_counter()
            torch.autograd.grad(forward(), wanted, grad)
            wait()
            if number:  # the first round warms up
                times[name].append(time.perf_counter() - begun)
    ours = times["transform"]
    return {
        "batch": batch,
        "features": features,
        "classes": classes,
        **{f"{name} ms": round(1e3 * median(found), 3) for name, found in times.items()},
        "times learned": round(
            median(a / b for a, b in zip(times["learned"], ours, strict=True)), 2
        ),
        "times stored": round(median(a / b for a, b in zip(times["stored"], ours, strict=True)), 2),
        "learned MB": round(8e-6 * learned.numel(), 2),
        "matrix MB": round(4e-6 * rows.numel(), 2),
    }


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    rows = [measure(options.batch, *size, options.rounds) for size in SIZES]
    notes = [f"float32, {DEVICE}; {options.rounds} alternating rounds after one that warms up"]
    if DEVICE == "cpu":
        notes.append("not measured: GPU figures, no GPU could be had")
    record = BenchmarkRecord("hadamard-classifier", FORMULA, rows, notes=notes)
    write_record(options.json, record)
    print(record.table())


if __name__ == "__main__":
    main()
