"""Mixup and CutMix: inside the ghost, keyed to its place, and identity at a weight of one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from largebatch.data import DataConfig, Pipeline, Request, build_source
from largebatch.data.mixing import mix_batch

GHOSTS = (4, 4, 3)


def images(n: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    """Each sample's pixels are its own number, so that a mixture tells who took part."""
    numbers = torch.arange(n, dtype=torch.float64)
    return numbers.view(-1, 1, 1, 1).expand(n, 2, 8, 8).contiguous(), torch.arange(n)


@pytest.mark.parametrize("kind", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 1.0, "cutmix": 1.0}])
def test_partners_stay_inside_the_ghost_and_labels_follow_pixels(kind: dict[str, float]) -> None:
    inputs, targets = images()
    for epoch in range(20):
        mixed, info = mix_batch(inputs, targets, GHOSTS, (0, 4, 8), 3, epoch, **kind)
        start = 0
        for size in GHOSTS:
            ghost = range(start, start + size)
            assert sorted(info.partners[start : start + size].tolist()) == list(ghost)
            assert len(set(info.weight[start : start + size].tolist())) == 1
            start += size
        # Whatever was mixed, the mean pixel is the mean of the labels by weight.
        expected = info.weight * targets + (1 - info.weight) * info.partners
        assert torch.allclose(mixed.mean((1, 2, 3)), expected, atol=1e-12)
        assert ((info.weight >= 0) & (info.weight <= 1)).all()


@pytest.mark.parametrize("kind", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 1.0, "cutmix": 1.0}])
def test_a_ghost_is_mixed_alike_in_any_micro_batch(kind: dict[str, float]) -> None:
    inputs, targets = images()
    whole, info = mix_batch(inputs, targets, GHOSTS, (0, 4, 8), 3, 1, **kind)
    first, one = mix_batch(inputs[:4], targets[:4], (4,), (0,), 3, 1, **kind)
    rest, two = mix_batch(inputs[4:], targets[4:], (4, 3), (4, 8), 3, 1, **kind)
    assert torch.equal(torch.cat([first, rest]), whole)
    assert torch.equal(torch.cat([one.partners, two.partners]), info.partners)
    assert torch.equal(torch.cat([one.weight, two.weight]), info.weight)
    for seed, epoch, positions in ((4, 1, (0, 4, 8)), (3, 2, (0, 4, 8)), (3, 1, (11, 15, 19))):
        other, _ = mix_batch(inputs, targets, GHOSTS, positions, seed, epoch, **kind)
        assert not torch.equal(other, whole)


def test_a_weight_of_one_is_the_identity() -> None:
    inputs, targets = images()
    before = inputs.clone()
    # Beta(tiny, tiny) draws weights of exactly 0 or 1.
    found = set()
    for epoch in range(30):
        mixed, info = mix_batch(inputs, targets, GHOSTS, (0, 4, 8), 0, epoch, mixup=1e-9)
        found |= set(info.weight.tolist())
        ones = info.weight == 1
        assert torch.equal(mixed[ones], inputs[ones])
        assert torch.equal(mixed[~ones], inputs[info.partners[~ones]])
    assert found == {0.0, 1.0}
    assert torch.equal(inputs, before)


def test_each_ghost_is_mixed_in_one_layer() -> None:
    """By pixels or later, alike in any micro-batch; partners and weights are those of mixup."""
    inputs, targets = images()
    layers, found = ("input", "layer1", 3), set()
    for epoch in range(12):
        mixed, info = mix_batch(inputs, targets, GHOSTS, (0, 4, 8), 3, epoch, 0.4, layers=layers)
        _, plain = mix_batch(inputs, targets, GHOSTS, (0, 4, 8), 3, epoch, 0.4)
        assert torch.equal(info.weight, plain.weight) and torch.equal(info.rows, plain.rows)
        assert torch.equal(targets[info.rows], info.partners)
        start = 0
        for size in GHOSTS:
            rows = slice(start, start + size)
            later = [k for k, share in info.hidden.items() if (share[rows] != 1).any()]
            assert len(later) <= 1
            found |= set(later) or {0}
            if later:
                assert torch.equal(info.hidden[later[0]][rows], info.weight[rows])
                assert torch.equal(mixed[rows], inputs[rows])
            else:
                expected = info.weight * targets + (1 - info.weight) * info.partners
                assert torch.allclose(mixed.mean((1, 2, 3))[rows], expected[rows])
            start += size
        rest, part = mix_batch(
            inputs[4:], targets[4:], (4, 3), (4, 8), 3, epoch, 0.4, layers=layers
        )
        assert torch.equal(rest, mixed[4:])
        for k, share in part.hidden.items():
            assert torch.equal(share, info.hidden[k][4:])
    assert found == {0, 1, 2}


def test_weights_follow_the_beta_distribution() -> None:
    inputs, targets = images(2)
    weights = [
        mix_batch(inputs, targets, (2,), (0,), seed, 0, mixup=0.4)[1].weight[0].item()
        for seed in range(1500)
    ]
    assert stats.kstest(weights, stats.beta(0.4, 0.4).cdf).pvalue > 1e-4


def test_the_pipeline_mixes_training_batches_by_ghost(npz: type[Path]) -> None:
    config = DataConfig(name="arrays", root=str(npz()), mixup=0.5, augment="none")
    source = build_source(config, "train")
    pipeline = Pipeline(source, config, seed=7, dtype=torch.float64)
    indices, positions = np.arange(20), np.arange(100, 120)
    (whole,) = pipeline.read([Request(2, indices, positions, ghosts=(8, 8, 4))])
    parts = list(
        pipeline.read(
            [
                Request(2, indices[:8], positions[:8], ghosts=(8,)),
                Request(2, indices[8:], positions[8:], ghosts=(8, 4)),
            ]
        )
    )
    assert torch.equal(torch.cat([part.inputs for part in parts]), whole.inputs)
    assert whole.mixed is not None
    assert torch.equal(
        torch.cat([part.mixed.partners for part in parts if part.mixed]), whole.mixed.partners
    )
    config.mixup = 0.0
    (plain,) = pipeline.read([Request(2, indices, positions)])
    assert plain.mixed is None
    assert plain.ghosts == (20,)
    assert torch.equal(plain.targets, whole.targets)
