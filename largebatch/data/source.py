"""The interface of a data set: number of samples, their order, and their reader."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from largebatch._errors import RunFailure, UserError, raised
from largebatch.data.batch import Batch
from largebatch.data.config import DataConfig
from largebatch.data.files import printable
from largebatch.data.order import EpochOrder
from largebatch.data.request import Request

Split = Literal["train", "val"]
Opened = TypeVar("Opened", bound="Reader")


class Order(Protocol):
    """The sample at each position of an epoch: a pure function of (epoch, position)."""

    def indices(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """Return the samples at positions [start, stop) of an epoch: int64 (stop - start,)."""
        ...


@dataclass(frozen=True)
class Delivery:
    """The form in which a run wants its batches.

    Attributes:
        seed: the run's seed; all random draws are keyed to (seed, epoch, sample).
        device: where the batches are wanted.
        train: whether to augment and mix (training) or to read plainly (evaluation).
        dtype: type of floating-point inputs.
        channels_last: memory format of images.
    """

    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    train: bool = True
    dtype: torch.dtype = torch.float32
    channels_last: bool = False


class Reader(ABC):
    """Turns requests into batches, ahead of time if it can."""

    @abstractmethod
    def read(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """Yield the batch of each request, in order. A second call ends the first.

        Raises:
            UserError: a sample does not have the required form.
        """

    def close(self) -> None:  # noqa: B027
        """End background work."""

    def __enter__(self: Opened) -> Opened:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Source(ABC):
    """A finite set of samples.

    A subclass gives the number of samples and what it offers to models. It either reads a batch by
    :meth:`batch` or returns its own reader by :meth:`reader`.
    """

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples."""

    @abstractmethod
    def offers(self) -> dict[str, Any]:
        """Return the values that models and tasks may take by the names of their arguments.

        Images offer ``num_classes`` and ``image_shape``, text ``vocabulary`` and ``context``.
        """

    def widen(self, num_classes: int, name: str) -> None:
        """Accept ``model.num_classes``; only sources of labelled samples do.

        Raises:
            UserError: the samples have no labels.
        """
        raise UserError(f"model.num_classes={num_classes}: data.name={name!r} has no classes")

    def order(self, seed: int) -> Order:
        """Return the order of training: a random one each epoch."""
        return EpochOrder(len(self), seed)

    def batch(self, request: Request, delivery: Delivery) -> Batch:
        """Read the samples of one request.

        Raises:
            UserError: the subclass has its own reader, and no :meth:`example`.
        """
        raise UserError(f"{type(self).__name__}: a source defines batch, or reader and example")

    def reader(self, config: DataConfig, delivery: Delivery) -> Reader:
        """Return the reader of the samples, as set by section ``data`` and ``delivery``."""
        return BatchReader(self, delivery)

    def example(self, samples: int, delivery: Delivery, extent: int | None = None) -> Batch:
        """Return a batch of the form used in training, to try a model on."""
        first = np.arange(samples) % len(self)
        return self.batch(Request(0, first, first, extent), delivery)


class BatchReader(Reader):
    """Reads one batch after the other in the calling thread."""

    def __init__(self, source: Source, delivery: Delivery) -> None:
        self._source, self._delivery = source, delivery

    def read(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """Yield the batch of each request, in order."""
        for request in requests:
            try:
                batch = self._source.batch(request, self._delivery)
            except (UserError, RunFailure):
                raise
            except Exception as error:
                first = request.indices[0] if len(request.indices) else "none"
                raise UserError(
                    f"{type(self._source).__name__}.batch of samples from {first}: {raised(error)}"
                ) from error
            yield batch


class UnreadableSample(Exception):
    """A sample that cannot be read; the message names the file and the reason in one line."""

    def __init__(self, name: str, reason: object) -> None:
        super().__init__(name, " ".join(str(reason).split()) or type(reason).__name__)

    @property
    def name(self) -> str:
        """The file, or another name of the sample."""
        return str(self.args[0])

    def __str__(self) -> str:
        return printable(f"{self.args[0]}: {self.args[1]}")


def required_root(config: DataConfig, expected: str) -> str:
    """Return ``data.root``; if it is not set, raise an error that tells what it should name."""
    if config.root is None:
        raise UserError(f"data.root is not set: data.name={config.name!r} needs {expected}")
    return config.root
