"""Optimizers at large batches with an equal budget of tuning: F1 on MNIST at 4096 and 8192.

    python benchmarks/optimizers_f1_mnist.py --data DATA --runs RUNS --json benchmarks/results/FILE

Nado et al. (2021) showed that a tuned plain optimizer can match LARS and LAMB; so every contender
gets the same number of runs to find its rate, on the last 10,000 training images as validation set,
with one seed. The best rate then trains on all 60,000 images with the seeds given. Rates are
powers of two times a starting point: three at distances of four, then towards or around the best
(``search``), so that the best has a worse rate on each side; a best rate on the edge is said so.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from training_runs import all_top1, arguments, spread, top1

from largebatch.data.mnist import read_idx
from largebatch.record import BenchmarkRecord, write_record

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


def search(value_at: Callable[[int], float], budget: int) -> tuple[int, bool, dict[int, float]]:
    """Look for the exponent with the largest value.

    Args:
        value_at: the value at an exponent of two.
        budget: how many exponents are tried, at least 5.

    Returns:
        The best exponent, whether it is the smallest or largest tried, and all values.
    """
    values = {exponent: value_at(exponent) for exponent in (-2, 0, 2)}
    while len(values) < budget:
        best = max(values, key=lambda exponent: values[exponent])
        if best == max(values):
            values[best + 2] = value_at(best + 2)
        elif best == min(values):
            values[best - 2] = value_at(best - 2)
        else:
            near = (best + distance * side for distance in range(1, budget) for side in (1, -1))
            fresh = next(exponent for exponent in near if exponent not in values)
            values[fresh] = value_at(fresh)
    best = max(values, key=lambda exponent: values[exponent])
    return best, best in (min(values), max(values)), dict(sorted(values.items()))


def hold_out(data: str, runs: Path) -> Path:
    """Write MNIST's training images as an .npz whose test set is their last 10,000."""
    path = runs / "mnist_held_out.npz"
    if not path.exists():
        raw = Path(data) / "MNIST" / "raw"
        images = read_idx(raw / "train-images-idx3-ubyte", dimensions=3)
        labels = read_idx(raw / "train-labels-idx1-ubyte", dimensions=1).astype(np.int64)
        runs.mkdir(parents=True, exist_ok=True)
        np.savez(
            path,
            x_train=images[:50000],
            y_train=labels[:50000],
            x_test=images[50000:],
            y_test=labels[50000:],
        )
    return path


def compare(name: str, batch: int, epochs: int, budget: int, options: Any) -> dict[str, Any]:
    """Tune one contender at one batch, train it with every seed, return its line."""
    start, settings = CONTENDERS[name]
    folder = options.runs / f"{name.split(',')[0]}-{batch}-{epochs}ep"
    common = [
        *("--model.name=f1", f"--batch.size={batch}", f"--schedule.length={epochs}ep"),
        *(*SCHEDULE, *GHOSTS, *settings),
    ]

    def tuned(exponent: int) -> float:
        rate = start * 2.0**exponent
        held_out = hold_out(options.data, options.runs)
        return top1(
            folder / f"tune-{rate:g}",
            [
                *(*common, f"--optim.lr={rate}", f"--run.seed={TUNING_SEED}"),
                *("--data.name=arrays", f"--data.root={held_out}"),
            ],
        )

    best, edge, values = search(tuned, budget)
    rate = start * 2.0**best
    mnist = [*common, f"--optim.lr={rate}", "--data.name=mnist", f"--data.root={options.data}"]
    final = [(folder / f"seed-{s}", [*mnist, f"--run.seed={s}"]) for s in options.seeds]
    return {
        "batch": batch,
        "optimizer": name,
        "rate": rate,
        **spread(all_top1(final, 1)),
        "tuning runs": budget,
        "on the edge": edge,
        "tuning": {f"{start * 2.0**e:g}": round(value, 2) for e, value in values.items()},
        "settings": " ".join(settings),
    }


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[4096, 8192])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--budget", type=int, default=7, help="tuning runs of each contender")
    options = parser.parse_args()
    hold_out(options.data, options.runs)
    cases = [(name, batch) for batch in options.batches for name in CONTENDERS]
    with ThreadPoolExecutor(options.jobs) as pool:
        rows = list(
            pool.map(lambda case: compare(*case, options.epochs, options.budget, options), cases)
        )
    notes = [
        f"{options.epochs} epochs, rate up over a fifth of them and down as a square, ghosts of "
        "128 samples (Nado's: 64), fp32, one thread a run",
    ]
    record = BenchmarkRecord("optimizers-f1-mnist", FORMULA, rows, notes=notes)
    write_record(options.json, record)
    print(record.table())


if __name__ == "__main__":
    main()
