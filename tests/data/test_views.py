"""Two views of each image: SimCLR's augmentations, keyed to the sample."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from largebatch._errors import UserError
from largebatch.data import DataConfig, Delivery, Request, ViewBatch, build_source, crops, jitter

Ask = Callable[..., Request]


def views_of(config: DataConfig, requests: list[Request], **form: object) -> list[ViewBatch]:
    with build_source(config, "train").reader(config, Delivery(seed=1, **form)) as reader:
        return list(reader.read(requests))


def digest(views: Tensor) -> str:
    return hashlib.sha256(np.ascontiguousarray(views.numpy()).tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kind", ["digits", "arrays"])
def test_views_hang_on_the_sample_and_the_epoch_alone(
    kind: str, channels_last: bool, npz: Callable[..., Path], ask: Ask
) -> None:
    config = DataConfig(augment="views", blur=kind == "arrays")
    if kind == "arrays":
        config.name, config.root = kind, str(npz())
    (whole,) = views_of(config, [ask(range(40))], channels_last=channels_last)
    channels, side = (3, 16) if kind == "arrays" else (1, 8)
    assert whole.views.shape == (40, 2, channels, side, side)
    images = whole.views.flatten(0, 1)
    assert images.data_ptr() == whole.views.data_ptr()  # side by side in memory
    if channels_last:
        assert images.is_contiguous(memory_format=torch.channels_last)
    parts = [ask(range(a, b)) for a, b in ((0, 1), (1, 30), (30, 40))]
    cut = torch.cat([each.views for each in views_of(config, parts, channels_last=False)])
    assert torch.equal(cut, whole.views)
    (later,) = views_of(config, [ask(range(40), epoch=1)])
    assert not torch.equal(later.views, whole.views)
    differ = (whole.views[:, 0] != whole.views[:, 1]).flatten(1).any(1)
    assert differ.float().mean() > 0.9  # both views of an image are alike by chance alone
    if kind == "digits":  # a golden value: no worker, rank or machine may draw otherwise
        assert digest(whole.views[:4].mul(64).round()) == "c7a16592aa140ce0"


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_workers_see_the_same_views(folder: Path, workers: int, ask: Ask) -> None:
    config = DataConfig(
        name="imagefolder", root=str(folder), image_size=24, augment="views", workers=workers
    )
    (whole,) = views_of(config, [ask(range(14))])
    config.workers = 0
    parts = views_of(config, [ask(range(5)), ask(range(5, 14))])
    assert torch.equal(torch.cat([each.views for each in parts]), whole.views)
    assert whole.views.shape == (14, 2, 3, 24, 24) and whole.targets.tolist() == [0] * 7 + [1] * 7
    config.augment = "none"  # as evaluations ask for the images
    with build_source(config, "train").reader(config, Delivery(train=False)) as reader:
        (plain,) = reader.read([ask(range(14))])
    assert plain.inputs.shape == (14, 3, 24, 24)


def test_crops_and_colours_are_torchvision_s() -> None:
    from torchvision.transforms import functional

    images = torch.rand(6, 3, 30, 34, generator=torch.Generator().manual_seed(0))
    numbers = np.random.default_rng(0).random((6, crops.COUNT))
    boxes = crops.boxes(numbers, 30, 34, 0.08)
    assert (boxes[:, :2] >= 0).all() and (boxes[:, :2] + boxes[:, 2:] <= (30, 34)).all()
    cut = crops.resized(images, torch.from_numpy(boxes), (30, 34))
    factors = torch.tensor([-0.2, 0.2, -0.1, 0.1, 0.3, 0.0]).view(-1, 1, 1, 1)
    blurred = jitter._blurred(images, 1 + factors)
    turned = jitter._hue(images, factors)
    contrast = jitter._contrast(images, 1 + factors)
    for n, (top, left, height, width) in enumerate(boxes.tolist()):
        expected = functional.resized_crop(images[n], top, left, height, width, [30, 34])
        assert torch.allclose(cut[n], expected, atol=1e-5)
        factor = float(factors[n])
        assert torch.allclose(turned[n], functional.adjust_hue(images[n], factor), atol=1e-4)
        wanted = functional.adjust_contrast(images[n], 1 + factor)
        assert torch.allclose(contrast[n], wanted, atol=1e-3)
        wanted = functional.gaussian_blur(images[n], [3, 3], [1 + factor] * 2)
        assert torch.allclose(blurred[n], wanted, atol=1e-5)


def test_shares_are_the_published_ones() -> None:
    numbers = torch.rand(4000, jitter.COUNT, dtype=torch.float64)
    images = torch.rand(4000, 3, 2, 2)
    shown = jitter.distorted(images, numbers, 0.5, False)
    grey = (shown.amax(1) - shown.amin(1)).flatten(1).amax(1) < 1e-6
    same = (shown == images).flatten(1).all(1)
    assert abs(grey.double().mean() - 0.2) < 0.03 and abs(same.double().mean() - 0.16) < 0.03
    assert torch.equal(jitter.distorted(images, numbers, 0.0, False), images)
    areas = crops.boxes(np.random.default_rng(1).random((4000, crops.COUNT)), 100, 100, 0.08)
    share = areas[:, 2] * areas[:, 3] / 1e4
    assert 0.07 < share.min() < 0.09 and 0.45 < share.mean() < 0.54  # misfits are drawn anew


def test_digits_are_not_mirrored(ask: Ask) -> None:
    config = DataConfig(augment="views", least_area=1.0, jitter=0.0)
    (batch,) = views_of(config, [ask(range(300))])
    plain = DataConfig(augment="none")
    with build_source(plain, "train").reader(plain, Delivery()) as reader:
        (images,) = reader.read([ask(range(300))])
    whole = (batch.views[:, 0] - images.inputs).flatten(1).abs().amax(1) < 1e-4
    mirrored = (batch.views[:, 0] - images.inputs.flip(3)).flatten(1).abs().amax(1) < 1e-4
    assert whole.sum() > 10 and mirrored.sum() <= whole.sum() / 10


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"least_area": 0.0}, "data.least_area=0.0: above 0"),
        ({"jitter": 9.0}, "data.jitter=9.0: from 0 to 2"),
        ({"cutmix": 1.0}, "data.augment=views goes with cutmix=0 alone"),
        ({"augment": "none", "blur": True}, "data.blur=True: is of data.augment=views alone"),
    ],
)
def test_wrong_keys_are_refused(keys: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DataConfig(**{"augment": "views", **keys}).check()


def test_data_without_views_are_refused(npz: Callable[..., Path], ask: Ask) -> None:
    with pytest.raises(UserError, match=r"data\.name='quadratic' has no images"):
        build_source(DataConfig(name="quadratic", augment="views"), "train")
    config = DataConfig(name="arrays", augment="views")
    config.root = str(npz(x_train=np.full((40, 16, 16, 3), 7.0, np.float32)))
    with pytest.raises(UserError, match=r"data\.jitter=0\.5: images .* not within 0 and 1"):
        views_of(config, [ask(range(4))])
