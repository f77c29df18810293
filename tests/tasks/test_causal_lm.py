"""Causal language modelling: loss, weight and figures of a batch."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from largebatch.data import TokenBatch
from largebatch.tasks import CausalLM, build_task, config_of


class Table(nn.Module):
    """A model whose logits are a row for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(5, 5, dtype=torch.float64))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.rows[tokens]


def batch_of(n: int, counted: np.ndarray | None = None) -> TokenBatch:
    tokens = torch.randint(0, 5, (n, 9), generator=torch.Generator().manual_seed(0))
    return TokenBatch(tokens, np.arange(n), np.arange(n), (n,), counted)


def test_the_loss_is_a_sum_over_predicted_tokens() -> None:
    torch.manual_seed(0)
    model, task, batch = Table(), CausalLM(), batch_of(4)
    loss, sums = task.train(model, batch)
    expected = sum(
        -model.rows[a].log_softmax(0)[b] for row in batch.tokens.tolist() for a, b in pairwise(row)
    )
    assert loss.item() == pytest.approx(float(expected), rel=1e-12)
    assert sums.tolist() == [pytest.approx(loss.item()), 32.0] and loss.requires_grad


def test_unequal_passes_add_up_to_the_whole_batch() -> None:
    """The gradient of a step is that of all its tokens: no mean of means (float64, 1e-12)."""
    torch.manual_seed(0)
    counted = np.random.default_rng(0).random((7, 9)) < np.linspace(0.05, 1, 7)[:, None]
    model, task, whole = Table(), CausalLM(), batch_of(7, counted)
    loss, sums = task.train(model, whole)
    (expected,) = torch.autograd.grad(loss / sums[1], model.parameters())
    pieces, total, means = torch.zeros_like(expected), 0.0, torch.zeros_like(expected)
    for a, b in ((0, 1), (1, 5), (5, 7)):
        part = TokenBatch(
            whole.tokens[a:b], whole.indices[a:b], whole.positions[a:b], (b - a,), counted[a:b]
        )
        loss, sums = task.train(model, part)
        (gradient,) = torch.autograd.grad(loss, model.parameters())
        pieces, total = pieces + gradient, total + task.weight(part)
        means += gradient / max(task.weight(part), 1.0) / 3
    assert total == counted[:, 1:].sum()
    assert torch.allclose(pieces / total, expected, rtol=0, atol=1e-12)
    assert not torch.allclose(means, expected, atol=1e-3)  # what others take


def test_figures_of_sums() -> None:
    task = build_task(
        config_of("causal_lm")("causal_lm"), {"bytes_per_token": 4.0, "vocabulary": 5}
    )
    figures = task.read([20.0, 10.0])
    assert figures == {
        "loss": 2.0,
        "perplexity": pytest.approx(math.e**2),
        "bits_per_byte": pytest.approx(2 / math.log(2) / 4),
    }
    assert CausalLM().read([1e6, 1.0])["perplexity"] == math.inf
    assert "bits_per_byte" not in CausalLM().read([1.0, 1.0])
    assert {task.known(name).better for name in figures} == {"lower"}


def test_half_precision_is_summed_in_float32() -> None:
    class Half(Table):
        def forward(self, tokens: Tensor) -> Tensor:
            return super().forward(tokens).bfloat16()

    torch.manual_seed(0)
    loss, sums = CausalLM().train(Half(), batch_of(64))
    assert loss.dtype == torch.float32 and sums[1] == 64 * 8


def test_memory_follows_the_streams() -> None:
    class Counting(nn.Module):
        """Remembers how many windows each stream has had, and predicts token 0."""

        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(5))
            self.seen: list[list[float]] = []

        def forward(self, tokens: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
            before = torch.zeros(len(tokens)) if memory is None else memory
            self.seen.append(before.tolist())
            return self.bias.expand(*tokens.shape, 5), before + 1

    task, model = CausalLM(streams=4), Counting()
    tokens = torch.zeros(2, 3, dtype=torch.int64)
    for streams, begins in (([0, 1], True), ([2, 3], True), ([2, 3], False), ([0, 1], False)):
        batch = TokenBatch(
            tokens, np.arange(2), np.arange(2), (2,), streams=np.array(streams), begins=begins
        )
        task.train(model, batch)
    with task.undisturbed():  # a validation text begins anew, and leaves no trace
        batch.begins = True
        task.evaluate(model, batch)
        batch.begins = False
        task.evaluate(model, batch)
    task.train(model, batch)
    assert model.seen == [[0, 0], [0, 0], [1, 1], [1, 1], [0, 0], [1, 1], [2, 2]]
