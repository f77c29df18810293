"""Idea 2 of the design: the trajectory is a property of the config and not of the cluster."""

from __future__ import annotations

import os

import pytest
import torch

DOUBLE = [
    "--data.limit=290",  # the last step of an epoch has 34 samples, two ghosts for three ranks
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


@pytest.mark.parametrize(
    "shapes", [((3, 32),), pytest.param(((1, 32), (2, 96), (3, 64)), marks=pytest.mark.slow)]
)
def test_world_size_and_micro_batch_do_not_change_a_run(train, shapes):
    """In every third step one rank of three has no sample, and takes part."""
    one = train("one", *DOUBLE, "--optim.clip_norm=1.0")
    for nproc, micro in shapes:
        many = train(
            f"{nproc}-{micro}",
            *DOUBLE,
            "--optim.clip_norm=1.0",
            f"--batch.micro={micro}",
            nproc=nproc,
        )
        check_same(one, many)


def test_a_ghost_on_several_ranks_changes_nothing(train):
    """The last step of an epoch has 34 samples: its second ghost of 2 leaves one rank of 3 none."""
    sync = [*DOUBLE, "--norm.kind=sync", "--schedule.length=6st"]
    check_same(train("one", *sync), train("three", *sync, nproc=3))


@pytest.mark.slow
def test_manifold_mixup_is_a_property_of_the_config(train):
    """Ghosts of one pass are mixed in different blocks."""
    few = [*DOUBLE, "--schedule.length=6st", "--model.name=digits_cnn", "--data.mixup=0.5"]
    mixed = [*few, "--data.mixup_layers=[input,0,4]"]
    one = train("one", *mixed)
    check_same(one, train("two", *mixed, "--batch.micro=32", nproc=2))
    plain = train("plain", *few)
    assert [a["loss"] for a in plain.lines("train")] != [b["loss"] for b in one.lines("train")]


@pytest.mark.slow
def test_groups_of_ranks_and_whole_steps(train):
    """L1 ghosts that pairs of four ranks hold together; and statistics of the whole step."""
    few = [*DOUBLE, "--schedule.length=12st"]
    l1 = [*few, "--norm.kind=l1"]
    check_same(train("l1", *l1), train("pairs", *l1, "--norm.sync_ranks=2", nproc=4))
    whole = [*few, "--norm.kind=sync", "--norm.ghost_size=null"]
    check_same(train("whole", *whole), train("three", *whole, nproc=3))
    wrong = train("wrong", *whole, "--norm.sync_ranks=2", nproc=3, code=2)
    assert "norm.sync_ranks=2: must divide the number of ranks, 3: 1, 3" in wrong.output
    stated = train("stated", *whole, "--norm.sync_ranks=2", "--batch.micro=16", nproc=2)
    assert "norm.kind=sync takes statistics over 2 ranks with batch.micro each" in stated.output


CHECKPOINTED = """
from torch import nn
from torch.utils.checkpoint import checkpoint

class Net(nn.Sequential):
    recompute = False

    def forward(self, x):
        for layer in self:
            x = checkpoint(layer, x, use_reentrant=False) if self.recompute else layer(x)
        return x

def plain(num_classes):
    return Net(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8),
        nn.ReLU(), nn.Flatten(), nn.Linear(128, num_classes), nn.BatchNorm1d(num_classes),
    )

def recomputed(num_classes):
    net = plain(num_classes)
    net.recompute = True
    return net
"""


@pytest.mark.slow
def test_with_activation_checkpointing(train, tmp_path):
    (tmp_path / "nets.py").write_text(CHECKPOINTED)
    few = [*DOUBLE, "--schedule.length=6st"]
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    one = train("plain", *few, "--model.name=nets:plain", PYTHONPATH=path)
    again = [*few, "--model.name=nets:recomputed", "--batch.micro=32"]
    check_same(one, train("recomputed", *again, nproc=2, PYTHONPATH=path))


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
@pytest.mark.long
def test_in_float32_ranks_differ_no_more_than_threads(train):
    # All samples: the few of `limit` are learned before rounding has grown to a measure.
    single = [a for a in DOUBLE if not any(key in a for key in ("precision", "length", "limit"))]
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


@pytest.mark.slow
def test_clipped_units_and_sharpness_do_not_depend_on_ranks(train):
    sharp = [*DOUBLE, "--schedule.length=6st", "--optim.sam_rho=0.1", "--optim.adaptive_clip=0.05"]
    check_same(train("one", *sharp), train("two", *sharp, "--batch.micro=32", nproc=2))
