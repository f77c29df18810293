"""Masked language modelling: hidden tokens are predicted from the tokens around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from largebatch._errors import UserError
from largebatch.data import TokenBatch
from largebatch.data.draws import Stream, uniform
from largebatch.tasks.config import TaskConfig
from largebatch.tasks.figure import Figure
from largebatch.tasks.registry import tasks
from largebatch.tasks.task import Task

HIDDEN, REPLACED = 0.8, 0.1  # shares of the chosen tokens; the rest stays as it is
KEPT = -1


@dataclass
class MaskedLMConfig(TaskConfig):
    """Hidden tokens of text."""

    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "data": {"name": "stdlib"},
        "model": {"name": "bert"},
    }

    masked: float = 0.15
    """Share of a window's tokens that are to be predicted, at least one."""

    def check(self) -> None:
        """Refuse what cannot be, naming the key."""
        if not 0 < self.masked <= 1:
            raise UserError(f"task.masked={self.masked}: above 0, at most 1")


@tasks.register(
    "masked_lm", "hidden tokens of text, 80/10/10: loss and accuracy", "Devlin et al. 2019, BERT"
)
class MaskedLM(Task[TokenBatch]):
    """Forward, loss and figures of a step of masked language modelling.

    In each window a share of the tokens is chosen. 80% of the chosen tokens are replaced by the
    mask token, 10% by a random token, and 10% are left (Devlin et al. 2019, section 3.1 and
    appendix A.1). The choice is keyed to (seed, epoch, sample): it changes with the epoch, but not
    with ranks and passes. Validation chooses the same tokens every time.

    ``model(tokens, places)`` returns logits (chosen, vocabulary) at the chosen places only.
    ``places`` is int64 (chosen,), indices into the concatenated tokens of all windows. The weight
    is the number of chosen tokens.

    Args:
        vocabulary: number of tokens in the data.
        mask: the mask token; None: a new token is added to the vocabulary.
    """

    config = MaskedLMConfig
    figures = ("accuracy",)
    headline = Figure("loss", "lower")

    def __init__(self, config: MaskedLMConfig, vocabulary: int, mask: int | None = None) -> None:
        self._share, self._vocabulary = config.masked, vocabulary
        self._mask = vocabulary if mask is None else mask

    def offers(self, offers: Mapping[str, Any]) -> dict[str, Any]:
        """Return the data's offers with room for the mask in the vocabulary."""
        return {**offers, "vocabulary": max(self._vocabulary, self._mask + 1)}

    def known(self, name: str) -> Figure:
        """Return the figure of this name; accuracy is in percent."""
        return Figure(name, percent=True) if name == "accuracy" else super().known(name)

    def weight(self, batch: TokenBatch) -> float:
        """Return the number of chosen tokens."""
        return float(self._counts(batch).sum())

    def train(self, model: nn.Module, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Return (loss sum with gradient, the batch's sums ``[loss, accuracy, weight]``)."""
        tokens = batch.tokens[:, :-1]
        places, codes = (
            torch.from_numpy(each).to(tokens.device, non_blocking=True)
            for each in self.choose(batch)
        )
        given = tokens.reshape(-1)
        targets = given[places]
        shown = given.scatter(0, places, torch.where(codes == KEPT, targets, codes))
        logits = model(shown.view(tokens.shape), places)
        # At least float32: softmax in half precision loses the rare tokens.
        wide = logits if logits.dtype == torch.float64 else logits.float()
        loss = cross_entropy(wide, targets, reduction="sum")
        right = (logits.detach().argmax(1) == targets).sum()
        sums = (loss.detach(), right.to(loss.dtype), loss.new_full((), self.weight(batch)))
        return loss, torch.stack(sums)

    def evaluate(self, model: nn.Module, batch: TokenBatch) -> Tensor:
        """Return the batch's sums ``[loss, accuracy, weight]``."""
        return self.train(model, batch)[1]

    def choose(self, batch: TokenBatch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the places of the chosen tokens, and what is shown there (-1: the token itself).

        Both are int64 (chosen,). Places index the concatenated windows, each without its last
        token, which belongs to the next window.
        """
        n, length = len(batch), batch.tokens.shape[1] - 1
        draws = uniform(*batch.key, batch.indices, Stream.CHOICE, length)
        if batch.counted is not None:
            draws[~batch.counted[:, :-1]] = 2.0  # after all others
        first = np.argsort(draws, axis=1, kind="stable")
        chosen = np.zeros((n, length), dtype=bool)
        taken = np.arange(length) < self._counts(batch)[:, None]
        np.put_along_axis(chosen, first, taken, axis=1)
        both = uniform(*batch.key, batch.indices, Stream.REPLACEMENT, 2 * length)
        fate, which = both[:, :length], both[:, length:]
        other = (which * self._vocabulary).astype(np.int64)
        codes = np.where(fate < HIDDEN, self._mask, np.where(fate < HIDDEN + REPLACED, other, KEPT))
        return np.flatnonzero(chosen), codes[chosen]

    def _counts(self, batch: TokenBatch) -> NDArray[np.int64]:
        """Return how many tokens of each window are chosen: int64 (n,)."""
        length = batch.tokens.shape[1] - 1
        able = np.full(len(batch), length)
        if batch.counted is not None:
            able = batch.counted[:, :-1].sum(axis=1)
        return np.minimum(able, np.maximum(1, np.rint(self._share * able).astype(np.int64)))
