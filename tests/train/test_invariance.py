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
