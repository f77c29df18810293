"""Windows of text: data set ``text`` of any files, ``stdlib`` of Python's own library."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from largebatch._errors import UserError
from largebatch.data.config import DataConfig
from largebatch.data.draws import Stream, integers
from largebatch.data.registry import DataFacts, datasets
from largebatch.data.request import Request
from largebatch.data.source import Delivery, Order, Source, Split
from largebatch.data.stream_order import StreamOrder
from largebatch.data.token_batch import TokenBatch
from largebatch.data.token_store import Tokens, read_tokens, text_digest

CONTEXT = 128
LEAST_WINDOWS = 8  # of a stream of the validation text, where it is long enough


class TextSource(Source):
    """Windows of ``context`` tokens, each with the token that follows.

    Window ``i`` begins at token ``i * context``. In training all windows of an epoch are shifted by
    a random number below ``context``, so that over time every token stands at every place of a
    window. A phase with another extent takes that number of tokens from the same places; a sample
    is still a window. In validation every token but the first is predicted once. The last window
    begins early enough to be complete, and only its new tokens count.

    With ``streams`` the windows are read in order, see :class:`StreamOrder`. Windows that do not
    fill the streams evenly are left out.

    Attributes:
        tokens: (tokens,), the tokens of the split.

    Args:
        about: the tokens of both splits, and facts about them.
        streams: number of streams read side by side; None: windows are independent samples.
        limit: keep this number of windows from the start.
    """

    def __init__(
        self,
        tokens: NDArray[Any],
        about: Tokens,
        context: int,
        vocabulary: int,
        split: Split,
        streams: int | None = None,
        limit: int | None = None,
    ) -> None:
        if len(tokens) <= context:
            raise UserError(
                f"data.context={context}: a window of {context} tokens and the next one is longer"
                f" than the {_SPLITS[split]} text of {len(tokens):,} tokens; take a smaller one, or"
                " more text"
            )
        self.tokens, self._about, self._context = tokens, about, context
        self._vocabulary = vocabulary
        predicted, whole = len(tokens) - 1, split == "val" and streams is None
        windows = -(-predicted // context) if whole else predicted // context
        windows = min(windows, limit or windows)
        if streams is not None and split == "val":
            streams = min(streams, max(1, windows // LEAST_WINDOWS))
        if streams is not None:
            if windows < streams:
                raise UserError(
                    f"data.streams={streams}: the text has only {windows:,} windows of"
                    f" data.context={context}"
                )
            windows -= windows % streams
        self._windows, self._streams = windows, streams

    def __len__(self) -> int:
        return self._windows

    def offers(self) -> dict[str, Any]:
        """Return ``vocabulary``, ``context``, and ``streams``, ``mask``, ``bytes_per_token``."""
        known = {
            "streams": self._streams,
            "mask": self._about.mask,
            "bytes_per_token": self._about.bytes_per_token,
        }
        return {
            "vocabulary": self._vocabulary,
            "context": self._context,
            **{name: value for name, value in known.items() if value is not None},
        }

    def order(self, seed: int) -> Order:
        """Return the order of training: random in each epoch, or that of the streams."""
        if self._streams is None:
            return super().order(seed)
        return StreamOrder(len(self), self._streams)

    def batch(self, request: Request, delivery: Delivery) -> TokenBatch:
        """Read windows of ``request.extent`` tokens and the next one.

        Raises:
            UserError: the window is longer than the text, or a token is not in the vocabulary.
        """
        length = request.extent or self._context
        last = len(self.tokens) - 1 - length
        if last < 0 or (self._streams is not None and length != self._context):
            raise UserError(
                f"batch.plan: extent={length}: "
                + (
                    f"longer than the text of {len(self.tokens):,} tokens"
                    if last < 0
                    else f"windows of streams are all of data.context={self._context} tokens"
                )
            )
        first = request.indices * self._context
        if delivery.train and self._streams is None:
            epoch = np.zeros(1, dtype=np.int64)
            first = (
                first
                + integers(delivery.seed, request.epoch, epoch, Stream.SHIFT, self._context)[0]
            )
        starts = np.minimum(first, last)
        rows = self.tokens[starts[:, None] + np.arange(length + 1)].astype(np.int64)
        if rows.size and rows.max() >= self._vocabulary:
            raise UserError(
                f"data.vocabulary={self._vocabulary}: the text holds token {rows.max()}; the model"
                " needs a larger vocabulary"
            )
        counted = None
        if not delivery.train and (starts < first).any():
            # What the window before has predicted already is only there to be read.
            counted = np.arange(length + 1) > (first - starts)[:, None]
        tokens = torch.from_numpy(rows)
        if delivery.device.type == "cuda":
            tokens = tokens.pin_memory().to(delivery.device, non_blocking=True)
        return TokenBatch(
            tokens,
            request.indices,
            request.positions,
            request.ghosts or (len(request.indices),),
            counted,
            (delivery.seed, request.epoch),
            None if self._streams is None else request.positions % self._streams,
            self._streams is not None and bool((request.positions < self._streams).all()),
        )


_SPLITS = {"train": "training", "val": "validation"}


def _source(config: DataConfig, split: Split) -> TextSource:
    if config.digest is not None and text_digest(config) != config.digest:
        raise UserError(
            f"data.digest={config.digest}: the text or its tokenizer is another one now"
            f" ({text_digest(config)}); bring the former one back, or leave data.digest out in a"
            " new run"
        )
    about = read_tokens(config)
    vocabulary = config.vocabulary or about.vocabulary
    if vocabulary < about.vocabulary:
        raise UserError(
            f"data.vocabulary={vocabulary}: the tokenizer has {about.vocabulary:,} tokens, more"
            " than the model would know; leave it out, or take a larger one"
        )
    tokens = about.train if split == "train" else about.val
    limit = config.limit if split == "train" else None
    context = config.context or CONTEXT
    return TextSource(tokens, about, context, vocabulary, split, config.streams, limit)


@datasets.register(
    "text", "windows of any text: bytes, characters or tokens of files", facts=DataFacts(text=True)
)
def text(config: DataConfig, split: Split, num_classes: int | None = None) -> TextSource:
    """Build windows of the text that ``data.root`` names: a file, or a folder of files.

    ``data.tokenizer`` defines a token, ``data.context`` the number of tokens in a window. Files
    named ``train`` and ``val`` in a folder (as nanoGPT's ``train.bin`` and ``val.bin``) are the two
    splits; otherwise the end of the text is held out.
    """
    return _source(config, split)


@datasets.register(
    "stdlib",
    "the source text of Python's own library, 256 bytes",
    facts=DataFacts(text=True, library=True),
)
def stdlib(config: DataConfig, split: Split, num_classes: int | None = None) -> TextSource:
    """Build windows of the modules that lie in the folder of Python's own library.

    The modules exist on every machine but differ between versions of Python. ``data.digest`` in a
    run's config.yaml identifies the text.
    """
    return _source(config, split)
