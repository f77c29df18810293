"""Masked language modelling: which tokens are chosen, and what is shown in their place."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from largebatch._errors import UserError
from largebatch.data import TokenBatch
from largebatch.tasks import MaskedLM, MaskedLMConfig


def batch_of(indices: Any, epoch: int = 0, length: int = 65, **keys: Any) -> TokenBatch:
    indices = np.asarray(indices)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 50, (200, length), generator=generator)[indices % 200]
    return TokenBatch(tokens, indices, indices, (len(indices),), key=(7, epoch), **keys)


def task_of(share: float = 0.15, **keys: Any) -> MaskedLM:
    return MaskedLM(MaskedLMConfig("masked_lm", masked=share), 50, **keys)


def test_eighty_ten_ten() -> None:
    """Of 200 windows of 64 tokens: 10 of each, by shares within five standard deviations."""
    task, batch = task_of(), batch_of(np.arange(200))
    places, codes = task.choose(batch)
    rows = np.bincount(places // 64, minlength=200)
    assert (rows == 10).all() and task.weight(batch) == 2000
    for share, found in (
        (0.8, codes == 50),
        (0.1, codes == -1),
        (0.1, (codes >= 0) & (codes < 50)),
    ):
        assert abs(found.mean() - share) < 5 * (share * (1 - share) / 2000) ** 0.5
    assert np.bincount(places % 64, minlength=64).min() > 5  # every place, some time
    assert len(set(codes[(codes >= 0) & (codes < 50)].tolist())) > 35


def test_the_choice_is_the_sample_s_and_the_epoch_s() -> None:
    task = task_of()

    def chosen(indices: Any, epoch: int = 0) -> str:
        places, codes = task.choose(batch_of(indices, epoch))
        return hashlib.sha256(places.tobytes() + codes.tobytes()).hexdigest()

    whole = chosen([3, 9, 12, 150])
    assert whole == chosen([3, 9, 12, 150])
    assert whole != chosen([3, 9, 12, 150], epoch=1)
    places, codes = task.choose(batch_of([3, 9, 12, 150]))
    again = [task.choose(batch_of([index])) for index in (3, 9, 12, 150)]
    assert np.array_equal(codes, np.concatenate([codes for _, codes in again]))
    assert np.array_equal(places % 64, np.concatenate([places for places, _ in again]))
    # A golden value: no worker, rank or machine may choose otherwise.
    assert whole[:16] == "f58bacf73c36a122"


def test_only_what_counts_is_chosen() -> None:
    counted = np.zeros((3, 65), dtype=bool)
    counted[0, 60:], counted[1, 30] = True, True
    task, batch = task_of(), batch_of([1, 2, 3], counted=counted)
    places, _ = task.choose(batch)
    assert task.weight(batch) == len(places) == 2
    assert counted[:, :-1].reshape(-1)[places].all()


def test_loss_and_accuracy_are_of_the_chosen_tokens() -> None:
    class Echo(nn.Module):
        """Predicts what it is shown."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))

        def forward(self, tokens: Tensor, places: Tensor) -> Tensor:
            self.shown = tokens
            return self.scale * torch.eye(51, dtype=torch.float64)[tokens.reshape(-1)[places]]

    task, batch, model = task_of(mask=50), batch_of(np.arange(40)), Echo()
    loss, sums = task.train(model, batch)
    places, codes = task.choose(batch)
    truth = batch.tokens[:, :-1].reshape(-1)
    targets = truth[torch.from_numpy(places)]
    shown = torch.where(torch.from_numpy(codes) == -1, targets, torch.from_numpy(codes))
    expected = cross_entropy(3.0 * torch.eye(51)[shown].double(), targets, reduction="sum")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert sums.tolist() == [loss.item(), (shown == targets).sum().item(), len(places)]
    untouched = torch.ones(len(truth), dtype=torch.bool)
    untouched[torch.from_numpy(places)] = False
    assert torch.equal(model.shown.reshape(-1)[untouched], truth[untouched])
    assert task.known("accuracy").percent


def test_the_mask_has_a_place_in_the_vocabulary() -> None:
    assert task_of().offers({"vocabulary": 50, "context": 8}) == {"vocabulary": 51, "context": 8}
    assert task_of(mask=4).offers({"vocabulary": 50})["vocabulary"] == 50
    with pytest.raises(UserError, match=r"task.masked=0.0: above 0"):
        MaskedLMConfig("masked_lm", masked=0.0).check()
