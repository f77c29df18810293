"""Do the norms' gradients tell the noise scale of all parameters? Three networks, over their runs.

    python benchmarks/noise_by_norms.py --data=DATA --folder RUNS --json results/noise_by_norms.json

Gray et al. 2024 found that the gradients of layer norms, which cost nothing to watch, predict the
noise scale of a transformer. Here the same is asked of ghost batch norm. Every run is made twice
with the same bits, once with the source ``passes`` (all parameters) and once with ``norms``. DATA
holds MNIST and CIFAR-10 as `data.root` takes them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from largebatch._paths import UserPath
from largebatch.cli import main
from largebatch.probes.noise_estimate import estimate_noise, student
from largebatch.record import BenchmarkRecord, read_metrics
from largebatch.study import Done, Job, Study

FORMULA = (
    "noise scale = sum T / sum |G|^2 over the measured steps of a part of the run and all seeds, in"
    " samples, with Fieller's 95% interval; ratio = that of all parameters / that of the norms, its"
    " interval by a jackknife over blocks of successive steps, the same in both"
)
SOURCES = ("passes", "norms")
PARTS, BLOCKS = 4, 16
COMMON = [
    *("--norm.kind=ghost", "--schedule.warmup=5%", "--schedule.curve=cosine"),
    *("--telemetry.hardware_every=0", "--checkpoint.every=100%", "--evaluate.every=100%"),
]
NETWORKS = {
    "digits_cnn": [
        *("--data.name=digits", "--batch.size=64", "--batch.micro=16", "--norm.ghost_size=16"),
        *("--schedule.length=15ep", "--optim.lr=0.04"),
    ],
    "f1": [
        *("--data.name=mnist", "--data.limit=12800", "--batch.size=128", "--batch.micro=32"),
        *("--norm.ghost_size=32", "--schedule.length=5ep", "--optim.lr=0.1"),
    ],
    "cifar_resnet20": [
        *("--data.name=cifar10", "--data.limit=6400", "--batch.size=64", "--batch.micro=16"),
        *("--norm.ghost_size=16", "--schedule.length=3ep", "--optim.lr=0.1"),
    ],
}


class ByNorms(Study):
    """Every network with every seed, watched in two ways."""

    def __init__(
        self,
        data: UserPath,
        networks: Sequence[str] = tuple(NETWORKS),
        seeds: Sequence[int] = (0, 1),
    ) -> None:
        self.data, self.networks, self.seeds = data, networks, seeds

    def _job(self, network: str, source: str, seed: int) -> Job:
        probe = f"[{{name: noise, every: 1st, source: {source}, half_life: 5%}}]"
        options = [*COMMON, *NETWORKS[network], f"--model.name={network}", f"--run.seed={seed}"]
        if network != "digits_cnn":
            options.append(f"--data.root={self.data}")
        return Job.of(f"{network}-{source}-{seed}", [*options, f"--probes={probe}"])

    def jobs(self, done: Done) -> Iterable[Job]:
        """Return all runs."""
        for network in self.networks:
            for seed in self.seeds:
                yield from (self._job(network, source, seed) for source in SOURCES)

    def conclude(self, done: Done) -> BenchmarkRecord:
        """Return a row a network and part of the run."""
        rows: list[dict[str, Any]] = []
        for network in self.networks:
            for part in range(PARTS):
                rows.append(self._row(network, part, done))
        same = all(
            len({(done[f"{n}-{s}-{seed}"].summary or {})["weights_sha256"] for s in SOURCES}) == 1
            for n in self.networks
            for seed in self.seeds
        )
        notes = [f"the two runs of a pair end with the same bits: {'yes' if same else 'NO'}"]
        return BenchmarkRecord("noise-by-norms", FORMULA, rows, notes=notes)

    def _row(self, network: str, part: int, done: Done) -> dict[str, Any]:
        terms = {}
        for source in SOURCES:
            found = []
            for seed in self.seeds:
                whole = terms_of(done, f"{network}-{source}-{seed}")
                found.append(np.array_split(whole, PARTS)[part])
            terms[source] = np.concatenate(found)
        row: dict[str, Any] = {
            "network": network,
            "part of the run": f"{part + 1}/{PARTS}",
            "steps": len(terms["norms"]),
        }
        for source, name in (("passes", "all parameters"), ("norms", "norms")):
            estimate = estimate_noise(terms[source][:, 0], terms[source][:, 1])
            row[name] = None if estimate is None else estimate.text().removesuffix(" samples")
        return row | {"ratio": ratio(terms["passes"], terms["norms"])}


def terms_of(done: Done, name: str) -> NDArray[np.float64]:
    """Return (steps, 2): |G|^2 and T of a run's measured steps."""
    lines = read_metrics(done[name].directory / "metrics.jsonl")
    return np.array(
        [(line["noise_signal"], line["noise_trace"]) for line in lines if "noise_trace" in line]
    )


def ratio(one: NDArray[np.float64], other: NDArray[np.float64]) -> str:
    """Return the ratio of two noise scales with its 95% interval, or that it has none."""
    blocks = [
        np.stack([block.sum(0) for block in np.array_split(terms, BLOCKS)])
        for terms in (one, other)
    ]
    sums = [block.sum(0) for block in blocks]
    left = [whole - block for whole, block in zip(sums, blocks, strict=True)]
    if any(each.min() <= 0 for each in (*sums, *left)):
        return "unknown: a signal that may be zero"
    logs = np.log(left[0][:, 1] / left[0][:, 0]) - np.log(left[1][:, 1] / left[1][:, 0])
    error = math.sqrt((BLOCKS - 1) / BLOCKS * float(np.square(logs - logs.mean()).sum()))
    value = sums[0][1] / sums[0][0] / (sums[1][1] / sums[1][0])
    wide = math.exp(student(0.95, BLOCKS - 1) * error)
    return f"{value:.2f} [{value / wide:.2f}, {value * wide:.2f}]"


if __name__ == "__main__":
    sys.exit(main(["study", "noise_by_norms:ByNorms", *sys.argv[1:]]))
