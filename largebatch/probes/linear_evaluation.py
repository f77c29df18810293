"""Linear evaluation: the accuracy of a linear classifier trained on an encoder's features."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from largebatch._errors import UserError
from largebatch.probes.frozen_features import FrozenFeatures, Plain
from largebatch.probes.further import Run, evaluations
from largebatch.processes.environment import World


@evaluations.register(
    "linear",
    "accuracy of a linear classifier on an encoder's frozen features",
    "Chen et al. 2020, SimCLR, appendix B.8",
)
def linear(
    task: Any,
    source: Any,
    validation: Any,
    plain: Plain,
    world: World,
    decay: float = 1e-4,
    iterations: int = 100,
) -> Run:
    """Build the evaluation ``linear`` of ``evaluate.also``: ``linear_top1`` of validation images.

    The classifier is multinomial logistic regression on features of training images without
    augmentation, each feature divided by its standard deviation. L-BFGS fits it in float64 from
    zero, as SimCLR does to judge transfer (appendix B.8).

    Args:
        decay: c of the penalty c/2 |W|^2, beside the mean loss of an image.
        iterations: largest number of L-BFGS iterations.

    Raises:
        UserError: an option is out of its range, or the task has no features.
    """
    if not isinstance(decay, (int, float)) or not 0 <= decay < math.inf:
        raise UserError(f"decay={decay!r}: a number from 0 up")
    if not isinstance(iterations, int) or iterations < 1:
        raise UserError(f"iterations={iterations!r}: a number from 1 up")
    frozen = FrozenFeatures(task, source, validation, plain, world)

    def run(model: nn.Module) -> dict[str, float]:
        (known, labels), (asked, truth) = frozen.of(model)
        deviation = known.double().std(0).clamp_min(1e-12)
        weight, bias = fitted(known / deviation, labels, frozen.classes, decay, iterations)
        logits = (asked / deviation) @ weight.T + bias
        return {"top1": float((logits.argmax(1) == truth).double().mean())}

    return run


def fitted(
    features: Tensor, labels: Tensor, classes: int, decay: float, iterations: int
) -> tuple[Tensor, Tensor]:
    """Fit logistic regression to (n, d) features; return weights (classes, d) and biases."""
    weight = features.new_zeros(classes, features.shape[1], requires_grad=True)
    bias = features.new_zeros(classes, requires_grad=True)
    search = torch.optim.LBFGS([weight, bias], max_iter=iterations, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        loss = cross_entropy(features @ weight.T + bias, labels)
        loss = loss + decay / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad(), torch.autocast(features.device.type, enabled=False):
        search.step(closure)
    return weight.detach(), bias.detach()
