"""Contrastive learning: the loss of ghosts held in passes, the head, the features."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from largebatch._errors import UserError
from largebatch.data import ImageBatch, ViewBatch
from largebatch.models import Projected
from largebatch.nn import GhostBatchNorm, ghost_place, ghost_rows
from largebatch.tasks import Contrastive, ContrastiveConfig, Coupled, build_task

EVERY = np.arange(12)


def task_of(**keys: object) -> Contrastive:
    return Contrastive(ContrastiveConfig("contrastive", **keys), views=2)


def batch_of(n: int) -> ViewBatch:
    views = torch.randn(n, 2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    at = np.arange(n)
    return ViewBatch(views, torch.zeros(n, dtype=torch.int64), at, at, (n,))


def nt_xent(views: Tensor, temperature: float) -> Tensor:
    """The definition: the mean over both views of each pair, summed over pairs."""
    rows = torch.nn.functional.normalize(views.flatten(0, 1), dim=1)
    logits = rows @ rows.T / temperature
    logits = logits.masked_fill(torch.eye(len(rows), dtype=torch.bool), -math.inf)
    partner = torch.arange(len(rows)) ^ 1
    return torch.nn.functional.cross_entropy(logits, partner, reduction="sum") / 2


def test_the_loss_of_a_batch_is_nt_xent() -> None:
    task, batch = task_of(temperature=0.3), batch_of(12)
    loss, sums = task.train(nn.Identity(), batch)
    assert loss.item() == pytest.approx(nt_xent(batch.views, 0.3).item(), rel=1e-12)
    assert sums.tolist() == [loss.item(), 12.0] and task.weight(batch) == task.step_weight(12)
    batch.views = torch.ones(12, 2, 6, dtype=torch.float64)
    alike = task.evaluate(nn.Identity(), batch)
    assert float(alike[0] / 12) == pytest.approx(math.log(2 * 12 - 1), rel=1e-12)
    assert isinstance(task, Coupled) and task.atom().minimum == 2


def test_half_precision_is_widened() -> None:
    batch = batch_of(4)
    batch.views = batch.views.bfloat16()
    assert task_of().embed(nn.Identity(), batch).dtype == torch.float32


def test_a_head_takes_the_place_of_the_classifier() -> None:
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    model = task_of(hidden=7, projection=4).complete(encoder)
    assert isinstance(model, Projected)
    assert [tuple(p.shape) for p in model.head.parameters()] == [(7, 5), (7,), (4, 7)]
    plain = ImageBatch(torch.randn(9, 6), torch.zeros(9), EVERY[:9], EVERY[:9], (9,))
    features = task_of().features(model, plain)
    assert features.shape == (9, 5) and torch.equal(model.head(features), model(plain.inputs))
    with pytest.raises(UserError, match=r"projection head; there is none"):
        task_of().complete(nn.Sequential(nn.Conv2d(1, 2, 3)))


def test_both_views_of_a_sample_are_in_one_ghost_of_a_norm() -> None:
    norm = GhostBatchNorm(3, ghost_size=4)
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(1))  # 10 samples
    with ghost_place(0, 3, (4, 4, 2)), ghost_rows(2):
        found = norm(x)
    expected = torch.cat([nn.BatchNorm1d(3)(part) for part in x.split((8, 8, 4))])
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"negatives": 1}, "task.negatives=1: 2 or more"),
        ({"temperature": 0.0}, "task.temperature=0.0: above 0"),
        ({"temperature": math.nan}, "task.temperature=nan: above 0"),
        ({"projection": 0}, "task.projection=0: must be 1 or more"),
    ],
)
def test_wrong_keys_are_refused(keys: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ContrastiveConfig("contrastive", **keys).check()


def test_other_data_are_refused_and_views_by_other_tasks() -> None:
    with pytest.raises(UserError, match=r"contrasts two views of an image; set data\.augment"):
        build_task(ContrastiveConfig("contrastive"), {"num_classes": 3, "image_shape": (1, 8, 8)})
    from largebatch.tasks import ClassificationConfig

    with pytest.raises(UserError, match=r"data\.augment=views: .*classification'? takes images as"):
        build_task(ClassificationConfig(), {"num_classes": 3, "views": 2})
