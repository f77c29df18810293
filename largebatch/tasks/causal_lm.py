"""Causal language modelling: every token is predicted from the tokens before it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from largebatch.data import TokenBatch
from largebatch.tasks.carry import Carry
from largebatch.tasks.config import TaskConfig
from largebatch.tasks.figure import Figure
from largebatch.tasks.registry import tasks
from largebatch.tasks.stream_rows import StreamRows
from largebatch.tasks.task import Task

LOWER = ("perplexity", "bits_per_byte")
NOT_COUNTED = -100  # torch's own mark of a target that the loss leaves out


@dataclass
class CausalLMConfig(TaskConfig):
    """The next token of text."""

    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "data": {"name": "stdlib"},
        "model": {"name": "gpt"},
    }


@tasks.register(
    "causal_lm",
    "the next token of text: loss, perplexity, bits per byte",
    "Radford et al. 2018, GPT; Dai et al. 2019, Transformer-XL",
)
class CausalLM(Task[TokenBatch]):
    """Forward, loss and figures of a step of causal language modelling.

    ``model(tokens)`` returns logits (n, tokens, vocabulary). The weight is the number of predicted
    tokens over all ranks and passes of the step. So windows and passes of unequal length count by
    their tokens, and no mean of means is taken. Perplexity is e^loss. Bits per byte are loss / ln 2
    over the bytes of a token, if the text's bytes are known.

    For data read in streams the model has a memory: ``model(tokens, memory)`` returns the logits
    and the new memory, one row per stream. Memory is None at the begin of streams.

    Args:
        streams: number of streams that the data are read in; None: windows are independent.
        bytes_per_token: mean bytes per token of the validation text.
    """

    config = CausalLMConfig

    def __init__(self, streams: int | None = None, bytes_per_token: float | None = None) -> None:
        self._memory = None if streams is None else StreamRows()
        self._bytes = bytes_per_token

    def carry(self) -> Carry | None:
        """Return the memory of the streams, if the data have streams."""
        return self._memory

    def known(self, name: str) -> Figure:
        """Return the figure of this name; for all figures lower is better."""
        return Figure(name, "lower") if name in LOWER else super().known(name)

    def weight(self, batch: TokenBatch) -> float:
        """Return the number of predicted tokens."""
        if batch.counted is not None:
            return float(batch.counted[:, 1:].sum())
        return float(len(batch) * (batch.tokens.shape[1] - 1))

    def train(self, model: nn.Module, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Return (loss sum with gradient, the batch's sums ``[loss, weight]``)."""
        loss = self._loss(model, batch)
        return loss, self._sums(loss, batch)

    def evaluate(self, model: nn.Module, batch: TokenBatch) -> Tensor:
        """Return the batch's sums ``[loss, weight]``."""
        return self._sums(self._loss(model, batch), batch)

    def read(self, sums: Sequence[float]) -> dict[str, float]:
        """Return the mean loss, perplexity, and bits per byte where bytes are known."""
        figures = super().read(sums)
        loss = figures["loss"]
        figures["perplexity"] = math.exp(loss) if loss < 700 else math.inf
        if self._bytes is not None:
            figures["bits_per_byte"] = loss / math.log(2) / self._bytes
        return figures

    def _loss(self, model: nn.Module, batch: TokenBatch) -> Tensor:
        logits = self._logits(model, batch).flatten(0, 1)
        targets = batch.tokens[:, 1:]
        if batch.counted is not None:
            counts = torch.from_numpy(batch.counted[:, 1:]).to(targets.device, non_blocking=True)
            targets = targets.masked_fill(~counts, NOT_COUNTED)
        # At least float32: softmax in half precision loses the rare tokens.
        wide = logits if logits.dtype == torch.float64 else logits.float()
        return cross_entropy(wide, targets.flatten(), reduction="sum", ignore_index=NOT_COUNTED)

    def _logits(self, model: nn.Module, batch: TokenBatch) -> Tensor:
        tokens = batch.tokens[:, :-1]
        if self._memory is None:
            logits: Tensor = model(tokens)
            return logits
        assert batch.streams is not None
        streams = batch.streams.tolist()
        memory = None if batch.begins else self._memory.take(streams)
        logits, after = model(tokens, memory)
        self._memory.put(streams, after)
        return logits

    def _sums(self, loss: Tensor, batch: TokenBatch) -> Tensor:
        return torch.stack((loss.detach(), loss.new_full((), self.weight(batch))))
