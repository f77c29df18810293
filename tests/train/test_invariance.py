"""Idea 2 of the design: the trajectory is a property of the config and not of the cluster."""

from __future__ import annotations

import pytest
import torch

DOUBLE = [
    "--data.limit=330",
    "--batch.size=128",
    "--norm.kind=ghost",
    "--norm.ghost_size=32",
    "--optim.lr=0.05",
    "--optim.weight_decay=0.001",
    "--precision.compute=fp64",
    "--schedule.length=50st",
]


def distance(a, b) -> float:
    return float((a - b).norm() / b.norm().clamp_min(1e-300))


def test_world_size_and_micro_batch_do_not_change_a_run(train):
    one = train("one", *DOUBLE, "--optim.clip_norm=1.0")
    for nproc, micro in ((1, 32), (2, 128), (3, 64)):
        many = train(
            f"{nproc}-{micro}",
            *DOUBLE,
            "--optim.clip_norm=1.0",
            f"--batch.micro={micro}",
            nproc=nproc,
        )
        check_same(one, many)


def test_ranks_without_a_sample_take_part(train):
    # The last step of an epoch of 290 has 34 samples, two ghosts for three ranks.
    few = [*DOUBLE, "--data.limit=290", "--schedule.length=20st"]
    check_same(train("one", *few), train("three", *few, nproc=3))


def check_same(one, many):
    assert [line["order_hash"] for line in one.lines("train")] == [
        line["order_hash"] for line in many.lines("train")
    ]
    assert [line["samples"] for line in one.lines("train")] == [
        line["samples"] for line in many.lines("train")
    ]
    for a, b in zip(one.lines("train"), many.lines("train"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-9)
        assert a["top1"] == b["top1"]
    for a, b in zip(one.lines("val"), many.lines("val"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-9)
        assert (a["top1"], a["count"]) == (b["top1"], b["count"])
    expected, found = one.weights, many.weights
    assert list(expected) == list(found)
    for name, tensor in expected.items():
        if tensor.is_floating_point():
            assert tensor.dtype == torch.float64
            assert distance(found[name], tensor) < 1e-9, name
        else:
            assert torch.equal(found[name], tensor), name


def apart(a, b) -> float:
    """Return the norm of the difference of all weights over their norm."""
    gap = sum(float((a[n].double() - b[n].double()).square().sum()) for n in a)
    return (gap / sum(float(t.double().square().sum()) for t in b.values())) ** 0.5


@pytest.mark.slow
def test_in_float32_ranks_differ_no_more_than_threads(train):
    single = [a for a in DOUBLE if "precision" not in a and "length" not in a]
    first, fifty = [*single, "--schedule.length=1st"], [*single, "--schedule.length=50st"]
    start = train("start", *single, "--schedule.length=1st", "--optim.lr=0").weights
    parameters = [n for n in start if "running" not in n and "tracked" not in n]
    updates = []
    for nproc in (1, 2):
        moved = train(f"first-{nproc}", *first, nproc=nproc).weights
        updates.append({n: moved[n] - start[n] for n in parameters})
    first_step = apart(updates[1], updates[0])
    one = train("one", *fifty).weights
    threads = apart(train("threads", *fifty, OMP_NUM_THREADS="2").weights, one)
    ranks = apart(train("ranks", *fifty, nproc=2).weights, one)
    print(
        f"\nfirst update {first_step:.2e}; after 50 steps: threads {threads:.2e}, ranks {ranks:.2e}"
    )
    assert first_step < 1e-5
    # Rounding grows by about a quarter a step here, so both distances are draws of one size.
    assert ranks < 3 * threads


def test_clipped_units_and_sharpness_do_not_depend_on_ranks(train):
    sharp = [*DOUBLE, "--schedule.length=6st", "--optim.sam_rho=0.1", "--optim.adaptive_clip=0.05"]
    check_same(train("one", *sharp), train("two", *sharp, "--batch.micro=32", nproc=2))
