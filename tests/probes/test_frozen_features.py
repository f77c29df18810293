"""k-NN and linear evaluation of features: by hand, and against scikit-learn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from largebatch._errors import UserError
from largebatch.probes import evaluations
from largebatch.processes import World


@dataclass
class Split:
    """Rows of features that are their own inputs."""

    inputs: Tensor
    targets: Tensor

    def offers(self) -> dict[str, int]:
        return {"num_classes": 3}


class Rows:
    """A task whose encoder is the model alone."""

    def features(self, model: nn.Module, batch: Split) -> Tensor:
        return model(batch.inputs)


def plain(split: Split) -> Iterator[Split]:
    for rows in range(0, len(split.targets), 50):
        yield Split(split.inputs[rows : rows + 50], split.targets[rows : rows + 50])


def splits() -> tuple[Split, Split]:
    """Three overlapping clouds in 4 dimensions, 240 and 90 points, off the origin."""
    rng = np.random.default_rng(0)
    both = []
    for count in (240, 90):
        labels = np.arange(count) % 3
        points = rng.normal(size=(count, 4)) + 1.2 * np.eye(3, 4)[labels] + 5
        both.append(Split(torch.from_numpy(points), torch.from_numpy(labels)))
    return both[0], both[1]


def run(name: str, **options: Any) -> float:
    source, validation = splits()
    build = evaluations.entry(name).factory
    with torch.no_grad():
        found = build(Rows(), source, validation, plain, World(), **options)(nn.Identity())
    assert list(found) == ["top1"]
    return found["top1"]


def test_neighbours_vote_by_their_cosines() -> None:
    source, validation = splits()
    mean = source.inputs.mean(0)
    right = 0
    for point, label in zip(validation.inputs - mean, validation.targets, strict=True):
        rows = source.inputs - mean
        cosines = torch.nn.functional.cosine_similarity(rows, point[None])
        votes = torch.zeros(3, dtype=torch.float64)
        for place in cosines.argsort(descending=True)[:30].tolist():
            votes[source.targets[place]] += torch.exp(cosines[place] / 0.1)
        right += int(votes.argmax() == label)
    assert run("knn", neighbours=30, temperature=0.1) == right / 90
    assert run("knn", neighbours=10_000) > 0.4  # no more than there are


def test_the_classifier_is_that_of_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression

    source, validation = splits()
    mean, deviation = source.inputs.mean(0), source.inputs.std(0)
    fit = LogisticRegression(C=1 / (240 * 1e-2), tol=1e-8, max_iter=1000)
    fit.fit(((source.inputs - mean) / deviation).numpy(), source.targets.numpy())
    points = ((validation.inputs - mean) / deviation).numpy()
    assert run("linear", decay=1e-2) == pytest.approx(fit.score(points, validation.targets.numpy()))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("knn", {"neighbours": 0}, "neighbours=0: a number from 1 up"),
        ("knn", {"temperature": "warm"}, "temperature='warm': a number above 0"),
        ("linear", {"decay": -1}, "decay=-1: a number from 0 up"),
        ("linear", {"iterations": 1.5}, "iterations=1.5: a number from 1 up"),
    ],
)
def test_wrong_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(name, **options)


def test_a_task_without_features_is_refused() -> None:
    source, validation = splits()
    with pytest.raises(UserError, match="the task makes none"):
        evaluations.entry("knn").factory(object(), source, validation, plain, World())
