"""The simulator against figures that others published, with published constants and nothing fitted.

    python benchmarks/plan_published.py --json benchmarks/results/plan_published.json

Each row: what was published, what ``largebatch plan``'s simulator says with the constants that it
ships, and their ratio. Where a publication leaves out what the prediction needs, every reading of
it has its row.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from largebatch.distributed.grid import Grid
from largebatch.models import ModelConfig, build_model, image_offers
from largebatch.nn import NormConfig
from largebatch.record import BenchmarkRecord, write_record
from largebatch.simulate import Cluster, Method, Trace, bucket, simulate, trace
from largebatch.simulate.constants import device, link, published
from largebatch.simulate.methods import BEST_GRID, FLAT, NCCL, PIPELINED, OnHosts

FORMULA = (
    "ratio = predicted / published; Sony: efficiency = step of one node / step of all, at the same "
    "batch per GPU; DGX A100: 8 x step of one GPU / step of eight; horovod: ms of one all-reduce"
)
SHAPE = (3, 224, 224)
BERT_LARGE = 336_226_108  # parameters with both pretraining heads
SERIAL = OnHosts("torus, serial", "torus", chunks=(1,))


def resnet50(dtype: torch.dtype) -> Trace:
    """Trace ResNet-50 on ImageNet."""

    def build() -> torch.nn.Module:
        return build_model(ModelConfig(name="resnet50"), NormConfig(), image_offers(1000, SHAPE))

    return trace(build, SHAPE, dtype)


def row(point: str, reading: str, truth: float, found: float) -> dict[str, Any]:
    return {
        "point": point,
        "reading": reading,
        "published": truth,
        "predicted": round(found, 4 if truth < 10 else 1),
        "ratio": round(found / truth, 3),
    }


def sony() -> list[dict[str, Any]]:
    """91.62% on 1,088 V100 against one node: 272 nodes of 4 with two EDR cards, 32 images a GPU."""
    step = resnet50(torch.float16)
    chip = device("v100", "fp16")
    cost = published(link("nvlink-v100"), link("ib-edr", cards=2))

    def seconds(grid: Grid, method: Method) -> float:
        compute = chip.compute(step, 32)
        half = replace(compute, gradients=tuple((t, n // 2) for t, n in compute.gradients))
        return simulate(
            half, bucket(half, 25), lambda size: method.choose(cost, size, grid).seconds
        ).seconds

    alone = seconds(Grid(1, 4), FLAT)
    name = "Sony, efficiency on 1,088 V100"
    cases: list[tuple[str, Grid, Method]] = [
        ("torus 34 x 32, serial, fp16 gradients", Grid(34, 32, per_host=4), SERIAL),
        ("torus 272 x 4, serial, fp16 gradients", Grid(272, 4), SERIAL),
        ("torus 272 x 4, pipelined, fp16 gradients", Grid(272, 4), PIPELINED),
        ("torus, best grid, fp16 gradients", Grid(272, 4), BEST_GRID),
        ("flat ring, fp16 gradients", Grid(272, 4), FLAT),
        ("NCCL, fp16 gradients", Grid(272, 4), NCCL),
    ]
    return [row(name, text, 0.9162, alone / seconds(grid, method)) for text, grid, method in cases]


def dgx() -> list[dict[str, Any]]:
    """7.82 times one GPU on the eight of a DGX A100: 3,410.5 images/s on one, 512 images a GPU."""
    chip = device("a100", "fp16")
    cost = published(link("nvlink-a100"), link("ib-hdr"))
    cluster = Cluster(
        resnet50(torch.float16), chip, cost, 8, asked_batch=512, samples_per_second=3410.5
    )
    found = cluster.predict(1, 512, FLAT)
    return [row("DGX A100, speed-up of 8", "flat ring, fp32 gradients", 7.82, 8 * found.efficiency)]


def horovod() -> list[dict[str, Any]]:
    """2,498 ms flat and 978 ms torus on 32 nodes of 6 V100 with one 10 Gbit/s card: BERT-Large."""
    cost = published(link("nvlink-v100"), link("ethernet-10g"))
    grid, rows = Grid(32, 6), []
    for name, width in (("fp32", 4), ("fp16", 2)):
        size = width * BERT_LARGE
        bound = 1e3 * cost.bound(size, grid)
        for what, truth, method in (("flat", 2498.0, FLAT), ("torus", 978.0, SERIAL)):
            found = 1e3 * method.choose(cost, size, grid).seconds
            text = f"{what}, {name} gradients, one message; bound {bound:.0f} ms"
            rows.append(row("horovod#3608, ms", text, truth, found))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    notes = [
        "constants: those of largebatch/simulate/constants.yaml, with its sources; nothing "
        "is fitted",
        "Sony: arXiv 1811.05233; its software's own speed on one V100 is not published, so compute "
        "is the simulator's for a V100; fp16 gradients as in the paper",
        "DGX A100: NVIDIA DeepLearningExamples, MXNet ResNet-50 v1.5, mixed precision; input and "
        "stragglers, which the simulator leaves out, are in the published figure",
        "horovod#3608: size and type of the message are not stated. 978 ms is below one "
        "10 Gbit/s card's bound for all of BERT-Large's gradients, even in fp16",
    ]
    record = BenchmarkRecord("plan-published", FORMULA, [*sony(), *dgx(), *horovod()], notes=notes)
    write_record(options.json, record)
    print(record.table())


if __name__ == "__main__":
    main()
