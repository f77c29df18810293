"""k-nearest-neighbour accuracy of an encoder's features: an evaluation without training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from largebatch._errors import UserError
from largebatch.probes.frozen_features import FrozenFeatures, Plain
from largebatch.probes.further import Run, evaluations
from largebatch.processes.environment import World

ROWS = 1024  # validation images that are compared with all training images at once


@evaluations.register(
    "knn",
    "weighted k-nearest-neighbour accuracy of an encoder's features",
    "Wu et al. 2018, Unsupervised feature learning via non-parametric instance discrimination",
)
def knn(
    task: Any,
    source: Any,
    validation: Any,
    plain: Plain,
    world: World,
    neighbours: int = 200,
    temperature: float = 0.07,
) -> Run:
    """Build the evaluation ``knn`` of ``evaluate.also``: ``knn_top1`` of the validation images.

    An image gets the label with most weight among its k nearest training images by cosine. Each of
    these images has the weight e^(cosine / temperature) (Wu et al. 2018, section 3.4, whose values
    are the defaults). Images are not augmented; features are centred on the training images.

    Args:
        neighbours: k; at most the number of training images.

    Raises:
        UserError: an option is out of its range, or the task has no features.
    """
    if not isinstance(neighbours, int) or neighbours < 1:
        raise UserError(f"neighbours={neighbours!r}: a number from 1 up")
    if not isinstance(temperature, (int, float)) or not 0 < temperature < float("inf"):
        raise UserError(f"temperature={temperature!r}: a number above 0")
    frozen = FrozenFeatures(task, source, validation, plain, world)

    def run(model: nn.Module) -> dict[str, float]:
        (known, labels), (asked, truth) = frozen.of(model)
        known, right = normalize(known, dim=1), 0
        for rows in range(0, len(asked), ROWS):
            queries = normalize(asked[rows : rows + ROWS], dim=1)
            votes = _votes(queries @ known.T, labels, frozen.classes, neighbours, temperature)
            right += int((votes.argmax(1) == truth[rows : rows + ROWS]).sum())
        return {"top1": right / len(truth)}

    return run


def _votes(cosines: Tensor, labels: Tensor, classes: int, k: int, temperature: float) -> Tensor:
    """Return each class's weight: (n, classes) of cosines (n, known)."""
    nearest = cosines.topk(min(k, cosines.shape[1]), dim=1)
    weights = torch.exp((nearest.values - 1) / temperature)  # the factor e^(1/t) changes no vote
    votes = cosines.new_zeros(len(cosines), classes)
    return votes.scatter_add_(1, labels[nearest.indices], weights)
