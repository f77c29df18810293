"""Memory that belongs to streams: the same run on any number of ranks, also one that goes on."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from tests.train.conftest import Finished, Train

READER = """
import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from largebatch.data import Source, StreamOrder, TokenBatch
from largebatch.tasks import StreamRows, Task

STREAMS, WINDOW = 12, 8
TEXT = np.random.RandomState(0).randint(0, 9, 60 * STREAMS * WINDOW + 1)
TEXT[9:] = np.where(np.arange(len(TEXT) - 9) % 3, TEXT[:-9], TEXT[9:])  # what was helps


class Text(Source):
    def __init__(self, split):
        self.windows = (60 if split == "train" else 5) * STREAMS

    def __len__(self):
        return self.windows

    def offers(self):
        return {"vocabulary": 9}

    def order(self, seed):
        return StreamOrder(len(self), STREAMS)

    def batch(self, request, delivery):
        rows = request.indices[:, None] * WINDOW + np.arange(WINDOW + 1)
        tokens = torch.from_numpy(TEXT[rows])
        return TokenBatch(tokens, request.indices, request.positions, request.ghosts)


class Remembering(Task):
    def __init__(self, config):
        self.memory = StreamRows()

    def carry(self):
        return self.memory

    def step_weight(self, samples):
        return float(samples * WINDOW)

    def weight(self, batch):
        return float(len(batch) * WINDOW)

    def train(self, model, batch):
        streams = [int(place) % STREAMS for place in batch.positions]
        begins = len(batch) == 0 or batch.positions[0] < STREAMS
        hidden = None if begins else self.memory.take(streams)
        loss, after = self._loss(model, batch, hidden)
        self.memory.put(streams, after)
        return loss, torch.stack((loss.detach(), loss.new_tensor(self.weight(batch))))

    def evaluate(self, model, batch):
        loss, _ = self._loss(model, batch, None)
        return torch.stack((loss, loss.new_tensor(self.weight(batch))))

    def _loss(self, model, batch, hidden):
        logits, after = model(batch.tokens[:, :-1], hidden)
        loss = cross_entropy(logits.flatten(0, 1), batch.tokens[:, 1:].flatten(), reduction="sum")
        return loss, after


class Model(nn.Module):
    def __init__(self, vocabulary):
        super().__init__()
        self.embed, self.mix = nn.Embedding(vocabulary, 16), nn.GRU(16, 16, batch_first=True)
        self.head = nn.Linear(16, vocabulary)

    def forward(self, tokens, hidden=None):
        hidden = None if hidden is None else hidden[None]
        out, after = self.mix(self.embed(tokens), hidden)
        return self.head(out), after[0]
"""
OPTIONS = (
    *("--task.name=reader:Remembering", "--data.name=reader:Text", "--model.name=reader:Model"),
    *("--norm.kind=none", "--optim.name=adamw", "--optim.lr=0.01", "--precision.compute=fp64"),
    *("--batch.size=12", "--schedule.length=2ep", "--checkpoint.every=17st"),
)


@pytest.fixture(autouse=True)
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reader.py").write_text(READER)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), *sys.path)))


def agree(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, rtol=1e-9, atol=1e-9), name


@pytest.mark.slow
def test_memory_is_a_streams_on_any_ranks_and_micro_batches(train: Train) -> None:
    alone = train("one", *OPTIONS)
    agree(train("three", *OPTIONS, nproc=3).weights, alone.weights)
    agree(train("micro", *OPTIONS, "--batch.micro=5").weights, alone.weights)


@pytest.mark.slow
def test_a_run_stopped_mid_epoch_goes_on_with_its_memory(goes_on: Callable[..., Finished]) -> None:
    whole = goes_on(*OPTIONS, step=40, killed=signal.SIGTERM)
    assert whole.summary["steps"] == 120


def test_a_second_pass_begins_with_the_memory_of_the_first(train: Train) -> None:
    """SAM at a vanishing radius is the plain step: its second pass must not read on."""
    plain = train("plain", *OPTIONS)
    sam = train("sam", *OPTIONS, "--optim.sam_rho=1e-12")
    for name, tensor in plain.weights.items():
        assert torch.allclose(sam.weights[name], tensor, rtol=1e-6, atol=1e-6), name


def test_a_plan_that_tears_streams_is_refused(train: Train) -> None:
    refused = train("torn", *OPTIONS, "--batch.size=18", code=2)
    assert "batch.size=18" in refused.output and "12 streams" in refused.output
