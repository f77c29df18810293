"""Optimizers at large batches with an equal budget of tuning: F1 on MNIST at 4096 and 8192.

    python benchmarks/optimizers_f1_mnist.py --data=DATA --held_out=NPZ --folder RUNS --json FILE

Nado et al. (2021) showed that a tuned plain optimizer can match LARS and LAMB; so every contender
gets the same number of runs to find its rate, on the last 10,000 training images as validation set,
with one seed. The best rate then trains on all 60,000 images with the seeds given. Rates are
powers of two times a starting point: three at distances of four, then towards or around the best
(``next_exponents``), so that the best has a worse rate on each side; a best rate on the edge is
said so.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from largebatch._errors import UserError
from largebatch._paths import UserPath
from largebatch.cli import main
from largebatch.data.mnist import read_idx
from largebatch.record import BenchmarkRecord
from largebatch.study import Done, Job, Study
from largebatch.study.grid import spread, value_of
from largebatch.train.parse import parse

FORMULA = (
    "top-1 = right answers / 10,000 test images after the last epoch, in %, mean and standard "
    "deviation over seeds; tuning: top-1 on the last 10,000 training images, trained on the others"
)
TUNING_SEED = 100
SCHEDULE = ["--schedule.warmup=20%", "--schedule.curve=poly", "--schedule.power=2"]
GHOSTS = ["--norm.kind=ghost", "--norm.ghost_size=128"]
DECAYS_L2 = ["--optim.weight_decay=0.0001"]
DECAYS_DECOUPLED = ["--optim.weight_decay=0.01"]
# Where the search begins, and the settings; the rate of `sgd` is that at a batch of 128.
CONTENDERS: dict[str, tuple[float, list[str]]] = {
    "sgd, linear scaling": (
        0.01,
        ["--optim.name=sgd", "--optim.scaling=linear", "--batch.reference=128", *DECAYS_L2],
    ),
    "nesterov, Nado's ingredients": (
        0.4,
        [
            *("--optim.name=sgd", "--optim.nesterov=true", *DECAYS_L2),
            *("--norm.ghost_size=64", "--task.label_smoothing=0.1"),
        ],
    ),
    "lars": (16.0, ["--optim.name=lars", *DECAYS_L2]),
    "lamb": (0.016, ["--optim.name=lamb", *DECAYS_DECOUPLED]),
    "adamw": (0.004, ["--optim.name=adamw", *DECAYS_DECOUPLED]),
    "muon": (0.016, ["--optim.name=muon", *DECAYS_DECOUPLED]),
}


def next_exponents(values: Mapping[int, float], budget: int) -> list[int]:
    """Return the exponents of two to try next, none when ``budget`` of them, at least 5, are."""
    first = [exponent for exponent in (-2, 0, 2) if exponent not in values]
    if first:
        return first
    if len(values) >= budget:
        return []
    best = max(values, key=lambda exponent: values[exponent])
    if best == max(values):
        return [best + 2]
    if best == min(values):
        return [best - 2]
    near = (best + distance * side for distance in range(1, budget) for side in (1, -1))
    return [next(exponent for exponent in near if exponent not in values)]


def hold_out(data: str, path: Path) -> None:
    """Write MNIST's training images as an .npz whose test set is their last 10,000."""
    if path.exists():
        return
    raw = Path(data) / "MNIST" / "raw"
    images = read_idx(raw / "train-images-idx3-ubyte", dimensions=3)
    labels = read_idx(raw / "train-labels-idx1-ubyte", dimensions=1).astype(np.int64)
    np.savez(
        path,
        x_train=images[:50000],
        y_train=labels[:50000],
        x_test=images[50000:],
        y_test=labels[50000:],
    )


class Contender:
    """One optimizer at one batch: its search, then its runs with every seed."""

    def __init__(self, name: str, batch: int, epochs: int) -> None:
        self.name, self.batch = name, batch
        self.start, self.settings = CONTENDERS[name]
        self.title = f"{name.split(',')[0].replace(' ', '-')}-{batch}-{epochs}ep"
        self.common = [
            *("--model.name=f1", f"--batch.size={batch}", f"--schedule.length={epochs}ep"),
            *(*SCHEDULE, *GHOSTS, *self.settings),
        ]

    def rate(self, exponent: int) -> float:
        """Return the rate at an exponent of two."""
        return self.start * 2.0**exponent

    def tuning(self, exponent: int, held_out: str) -> Job:
        """Return the run that judges a rate."""
        rate = self.rate(exponent)
        settings = [f"--optim.lr={rate}", f"--run.seed={TUNING_SEED}"]
        data = ["--data.name=arrays", f"--data.root={held_out}"]
        return Job(f"{self.title}-tune-{rate:g}", parse([*self.common, *settings, *data]))

    def final(self, exponent: int, seed: int, data: str) -> Job:
        """Return a run with the rate that was found."""
        settings = [f"--optim.lr={self.rate(exponent)}", f"--run.seed={seed}"]
        mnist = ["--data.name=mnist", f"--data.root={data}"]
        return Job(f"{self.title}-seed-{seed}", parse([*self.common, *settings, *mnist]))

    def tried(self, done: Done, budget: int) -> dict[int, float]:
        """Return the values found by now, as far as the search would have come by them."""
        values: dict[int, float] = {}
        while asked := next_exponents(values, budget):
            names = {e: f"{self.title}-tune-{self.rate(e):g}" for e in asked}
            if not set(names.values()) <= set(done):
                break
            for exponent, name in names.items():
                values[exponent] = value_of(done[name].summary or {}, "top1", percent=True)
        return values


class Optimizers(Study):
    """Every contender at every batch, with ``budget`` runs to find its rate."""

    def __init__(
        self,
        data: UserPath,
        held_out: UserPath,
        seeds: Sequence[int] = (0, 1, 2),
        batches: Sequence[int] = (4096, 8192),
        epochs: int = 5,
        budget: int = 7,
    ) -> None:
        if budget < 5:
            raise UserError(f"--budget={budget}: at least 5 runs, so that the best has neighbours")
        hold_out(data, Path(held_out))
        self.data, self.held_out, self.seeds = data, held_out, seeds
        self.epochs, self.budget = epochs, budget
        self.contenders = [Contender(name, b, epochs) for b in batches for name in CONTENDERS]

    def jobs(self, done: Done) -> Iterable[Job]:
        """Return the searches as far as they are known, and what follows from those that ended."""
        for contender in self.contenders:
            yield from self._jobs(contender, done)

    def _jobs(self, contender: Contender, done: Done) -> Iterator[Job]:
        values = contender.tried(done, self.budget)
        further = next_exponents(values, self.budget)
        for exponent in (*values, *further):
            yield contender.tuning(exponent, self.held_out)
        if not further:
            best = max(values, key=lambda exponent: values[exponent])
            for seed in self.seeds:
                yield contender.final(best, seed, self.data)

    def conclude(self, done: Done) -> BenchmarkRecord:
        """Return a line a contender and batch."""
        notes = [
            f"{self.epochs} epochs, rate up over a fifth of them and down as a square, ghosts of "
            "128 samples (Nado's: 64), fp32, one thread a run",
        ]
        rows = [self._row(contender, done) for contender in self.contenders]
        return BenchmarkRecord("optimizers-f1-mnist", FORMULA, rows, notes=notes)

    def _row(self, contender: Contender, done: Done) -> dict[str, Any]:
        values = contender.tried(done, self.budget)
        best = max(values, key=lambda exponent: values[exponent])
        finals = [done[f"{contender.title}-seed-{seed}"].summary or {} for seed in self.seeds]
        return {
            "batch": contender.batch,
            "optimizer": contender.name,
            "rate": contender.rate(best),
            **spread([value_of(summary, "top1", True) for summary in finals], "top1"),
            "tuning runs": self.budget,
            "on the edge": best in (min(values), max(values)),
            "tuning": {f"{contender.rate(e):g}": round(v, 2) for e, v in sorted(values.items())},
            "settings": " ".join(contender.settings),
        }


if __name__ == "__main__":
    sys.exit(main(["study", "optimizers_f1_mnist:Optimizers", *sys.argv[1:]]))
