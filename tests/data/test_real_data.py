"""The real sets, where a folder holds them: LARGEBATCH_TEST_DATA=FOLDER pytest tests/data."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from largebatch.data import DataConfig, EpochOrder, Pipeline, Request, build_source
from largebatch.data.check import check_images

ROOT = Path(os.environ.get("LARGEBATCH_TEST_DATA", ""))


def needs(part: str) -> pytest.MarkDecorator:
    absent = "LARGEBATCH_TEST_DATA" not in os.environ or not (ROOT / part).exists()
    return pytest.mark.skipif(absent, reason=f"no {part} in LARGEBATCH_TEST_DATA")


@needs("MNIST/raw")
def test_mnist_is_whole_and_normalised() -> None:
    config = DataConfig(name="mnist", root=str(ROOT))
    for split, count in (("train", 60_000), ("val", 10_000)):
        source = build_source(config, split)  # type: ignore[arg-type]
        assert len(source) == count
        indices = np.arange(count)
        pipeline = Pipeline(source, config, 0, train=False)
        (batch,) = pipeline.read([Request(0, indices, indices)])
        assert torch.bincount(batch.targets).min() > count * 0.08
        assert abs(batch.inputs.mean().item()) < 0.02
        assert abs(batch.inputs.std().item() - 1) < 0.02


@needs("cifar10.npz")
def test_batches_of_class_cyclic_cifar_mix_the_classes() -> None:
    source = build_source(DataConfig(name="arrays", root=str(ROOT / "cifar10.npz")), "train")
    assert (len(source), source.num_classes, source.image_shape) == (50_000, 10, (3, 32, 32))
    assert source.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=1e-3)
    labels = source.labels.numpy()  # type: ignore[attr-defined]
    assert np.array_equal(labels[:20], np.arange(20) % 10)
    order = EpochOrder(50_000, 0).indices(0, 0, 49_920)
    counts = np.stack([np.bincount(row, minlength=10) for row in labels[order].reshape(-1, 128)])
    variance = 12.8 * 0.9 * (50_000 - 128) / 49_999
    assert 0.9 < np.mean((counts - 12.8) ** 2) / variance < 1.1


@needs("imagenette")
def test_the_imagenette_sample_is_readable_and_the_same_for_any_workers() -> None:
    assert all(reason is None for _, reason in check_images(ROOT / "imagenette"))
    found = []
    for workers in (0, 2):
        config = DataConfig(name="imagefolder", root=str(ROOT / "imagenette"), workers=workers)
        source = build_source(config, "train")
        assert (len(source), source.num_classes) == (1000, 10)
        indices = EpochOrder(1000, 0).indices(0, 0, 70)
        with Pipeline(source, config, 0) as pipeline:
            found += list(pipeline.read([Request(0, indices, np.arange(70))]))
    assert torch.equal(found[0].inputs, found[1].inputs)
    assert torch.equal(found[0].targets, found[1].targets)
