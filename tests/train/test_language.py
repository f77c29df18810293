"""A tenant of the house in one file: a causal language model, its task and its text."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from tests.train.conftest import Running, Train

LANGUAGE = """
import math

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from largebatch.data import Source, TokenBatch
from largebatch.tasks import Figure, Task

TEXT = np.frombuffer(open(__file__, "rb").read() * 4, np.uint8).astype(np.int64)


class Text(Source):
    def __init__(self, split):
        cut = 7 * len(TEXT) // 8
        self.text = TEXT[:cut] if split == "train" else TEXT[cut:]

    def __len__(self):
        return (len(self.text) - 1) // 16

    def offers(self):
        return {"vocabulary": 128, "context": 16}

    def batch(self, request, delivery):
        rows = request.indices[:, None] * 16 + np.arange((request.extent or 16) + 1)
        tokens = torch.from_numpy(self.text[rows.clip(max=len(self.text) - 1)])
        return TokenBatch(tokens, request.indices, request.positions, request.ghosts)


class CausalLM(Task):
    figures = ("right",)
    headline = Figure("perplexity", "lower")

    def weight(self, batch):
        return batch.tokens[:, 1:].numel()

    def train(self, model, batch):
        sums = self.evaluate(model, batch)
        return sums[0], sums.detach()

    def evaluate(self, model, batch):
        logits, targets = model(batch.tokens[:, :-1]).flatten(0, 1), batch.tokens[:, 1:].flatten()
        loss = cross_entropy(logits, targets, reduction="sum")
        right = (logits.argmax(1) == targets).sum()
        return torch.stack((loss, right, loss.new_tensor(len(targets))))

    def read(self, sums):
        figures = super().read(sums)
        return figures | {"perplexity": math.exp(figures["loss"])}


class Model(nn.Module):
    def __init__(self, vocabulary, context):
        super().__init__()
        self.embed, self.mix = nn.Embedding(vocabulary, 32), nn.GRU(32, 32, batch_first=True)
        self.head = nn.Linear(32, vocabulary)

    def forward(self, tokens):
        return self.head(self.mix(self.embed(tokens))[0])
"""
OPTIONS = (
    *("--task.name=language:CausalLM", "--data.name=language:Text", "--model.name=language:Model"),
    *("--norm.kind=none", "--batch.size=24", "--optim.name=adamw", "--optim.lr=0.01"),
    *("--schedule.length=3ep", "--evaluate.every=20st", "--precision.compute=fp64"),
)


RANKS = 2


@pytest.fixture
def language(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the tenant's file where runs find it."""
    (tmp_path / "language.py").write_text(LANGUAGE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), *sys.path)))


def test_it_is_sixty_lines_long_at_most() -> None:
    assert sum(bool(line.strip()) for line in LANGUAGE.splitlines()) <= 60


@pytest.mark.usefixtures("language")
@pytest.mark.slow
def test_it_trains_to_the_same_weights_on_any_number_of_ranks(train: Train) -> None:
    runs = [train(f"ranks{n}", *OPTIONS, nproc=n) for n in (1, 2, 3)]
    alone, *others = (run.weights for run in runs)
    for other in others:
        for name, tensor in alone.items():
            assert torch.allclose(other[name], tensor, rtol=1e-9, atol=1e-9), name
    hashes = [[line["order_hash"] for line in run.lines("train")] for run in runs]
    assert hashes[0] == hashes[1] == hashes[2]
    # A weight in tokens: sums over batches divided by 16 tokens a window.
    first, last = runs[0].lines("val")[0], runs[0].lines("val")[-1]
    assert last["perplexity"] < 0.9 * first["perplexity"]
    assert last["perplexity"] == pytest.approx(math.exp(last["loss"]))
    assert last["count"] % 16 == 0 and 0 < last["right"] < 1


@pytest.mark.usefixtures("language")
def test_its_figures_are_seen_everywhere(train: Train) -> None:
    run = train("seen", *OPTIONS, "--telemetry.every=2st")
    steps = [line["step"] for line in run.lines("val")]
    assert steps[:-1] == list(range(20, steps[-1], 20))  # evaluate.every=20st, and the end
    assert all({"perplexity", "right"} <= line.keys() for line in run.metrics if "loss" in line)
    last = run.lines("val")[-1]
    assert run.summary["perplexity"] == last["perplexity"]
    assert run.summary["headline"] == "perplexity"
    assert f"perplexity {last['perplexity']:.2f}" in run.output
    assert "top1" not in run.output
    page = (run.directory / "report.html").read_text()
    assert "perplexity" in page and "top1" not in page
    told = json.loads((run.directory / "task.json").read_text())
    assert told["headline"] == {"name": "perplexity", "better": "lower", "percent": False}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.directory / "tensorboard"))
    events.Reload()
    assert {"train/perplexity", "val/perplexity"} <= set(events.Tags()["scalars"])


@pytest.mark.usefixtures("language")
@pytest.mark.slow
def test_it_goes_on_mid_epoch_to_the_same_bits(train: Train, begin: Callable[..., Running]) -> None:
    options = (*OPTIONS, "--checkpoint.every=7st")
    whole = train("whole", *options, nproc=RANKS)
    run = begin("stopped", *options, nproc=RANKS)
    run.wait_for(lambda: run.steps() >= 16, "step 16")
    run.process.terminate()
    run.end()
    stopped = run.steps()
    assert stopped < whole.summary["steps"]
    again = train("stopped", *options, nproc=RANKS)
    assert again.summary["weights_sha256"] == whole.summary["weights_sha256"]


@pytest.mark.usefixtures("language")
def test_it_stops_at_a_target_that_is_reached_from_above(train: Train) -> None:
    run = train("target", *OPTIONS, "--run.target={perplexity: 30}")
    reached = run.summary["target"]
    assert reached["perplexity"] <= 30 and reached["steps"] % 20 == 0
    assert run.summary["steps"] == reached["steps"]
    before = [line["perplexity"] for line in run.lines("val")[:-1]]
    assert all(value > 30 for value in before)


@pytest.mark.usefixtures("language")
def test_eval_tells_the_same_figures(train: Train) -> None:
    run = train("judged", *OPTIONS)
    command = [sys.executable, "-m", "largebatch", "eval", str(run.directory), "--allow-imports"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for name in ("loss", "perplexity", "right"):
        assert f"{run.summary[name]:.4f}"[:5] in done.stdout, (name, done.stdout)
