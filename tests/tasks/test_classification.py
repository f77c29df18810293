from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from largebatch._errors import UserError
from largebatch.data import ImageBatch, Mixed
from largebatch.tasks import Classification, ClassificationConfig, TaskConfig, build_task

N, CLASSES = 9, 12


def batch(mixed: bool = False) -> ImageBatch:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(N, CLASSES, generator=generator, dtype=torch.float64)
    targets = torch.randint(CLASSES, (N,), generator=generator)
    partners = torch.randint(CLASSES, (N,), generator=generator)
    weight = torch.rand(N, generator=generator, dtype=torch.float64)
    order = np.arange(N)
    extra = Mixed(partners, weight, torch.arange(N)) if mixed else None
    return ImageBatch(inputs, targets, order, order, (N,), extra)


def soft_loss(logits: torch.Tensor, soft: torch.Tensor, smoothing: float) -> torch.Tensor:
    """The definition: cross-entropy with y (1 - s) + s / K, summed."""
    soft = soft * (1 - smoothing) + smoothing / CLASSES
    return -(soft * logits.log_softmax(1)).sum()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mixed", [False, True])
def test_the_loss_is_a_sum_over_soft_targets(smoothing, mixed):
    one = batch(mixed)
    task = Classification(ClassificationConfig(label_smoothing=smoothing), CLASSES)
    soft = one_hot(one.targets, CLASSES).double()
    if one.mixed is not None:
        share = one.mixed.weight[:, None]
        soft = share * soft + (1 - share) * one_hot(one.mixed.partners, CLASSES)
    total, sums = task.train(nn.Identity(), one)
    torch.testing.assert_close(total, soft_loss(one.inputs, soft, smoothing))
    assert sums[0] == total
    assert sums[1] == (one.inputs.argmax(1) == one.targets).sum()
    assert task.weight(one) == N


def test_sums_add_up_over_parts():
    whole = batch()
    task = Classification(ClassificationConfig(), CLASSES)
    parts = [
        ImageBatch(
            whole.inputs[a:b],
            whole.targets[a:b],
            whole.indices[a:b],
            whole.positions[a:b],
            (b - a,),
        )
        for a, b in ((0, 4), (4, 5), (5, 9))
    ]
    sums = sum(task.evaluate(nn.Identity(), part) for part in parts)
    torch.testing.assert_close(sums, task.evaluate(nn.Identity(), whole))


def test_evaluation_ignores_smoothing_and_counts_top5():
    one = batch()
    task = Classification(ClassificationConfig(label_smoothing=0.3), CLASSES)
    assert task.figures == ("top1", "top5")
    loss, top1, top5, weight = task.evaluate(nn.Identity(), one).tolist()
    assert loss == pytest.approx(float(cross_entropy(one.inputs, one.targets, reduction="sum")))
    ranks = (one.inputs > one.inputs.gather(1, one.targets[:, None])).sum(1)
    assert (top1, top5, weight) == (int((ranks < 1).sum()), int((ranks < 5).sum()), N)
    assert Classification(ClassificationConfig(), 10).figures == ("top1",)


def test_half_precision_logits_are_widened():
    one = batch()
    one.inputs = one.inputs.bfloat16()
    total, _ = Classification(ClassificationConfig(), CLASSES).train(nn.Identity(), one)
    assert total.dtype == torch.float32


def test_unknown_task_is_refused():
    with pytest.raises(UserError, match=r"task\.name='clasification'.*classification"):
        build_task(TaskConfig(name="clasification"), {"num_classes": CLASSES})
