"""What a data set is to a run: how many samples, in which order, and who reads them."""

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
    """Which sample stands at a position: a pure function of (epoch, position)."""

    def indices(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """Return the samples at positions [start, stop) of an epoch: int64 (stop - start,)."""
        ...


@dataclass(frozen=True)
class Delivery:
    """How a run wants its batches.

    Attributes:
        seed: the run's; all that is drawn of a sample is keyed to (seed, epoch, sample).
        device: where the batches are wanted.
        train: whether to augment and mix (training) or to read plainly (evaluation).
        dtype: of floating-point inputs.
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
            UserError: a sample is not what it should be.
        """

    def close(self) -> None:  # noqa: B027
        """End what works in the background."""

    def __enter__(self: Opened) -> Opened:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Source(ABC):
    """A finite set of samples.

    A subclass says how many there are and what it offers to models, and either reads a batch by
    :meth:`batch` or brings a reader of its own.
    """

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples."""

    @abstractmethod
    def offers(self) -> dict[str, Any]:
        """Return what models and tasks may ask for by the names of their arguments.

        Images offer ``num_classes`` and ``image_shape``, text ``vocabulary`` and ``context``.
        """

    def widen(self, num_classes: int, name: str) -> None:
        """Take ``model.num_classes``, which only labelled samples have a use for.

        Raises:
            UserError: these have none.
        """
        raise UserError(f"model.num_classes={num_classes}: data.name={name!r} has no classes")

    def order(self, seed: int) -> Order:
        """Return the order of training: a random one each epoch."""
        return EpochOrder(len(self), seed)

    def batch(self, request: Request, delivery: Delivery) -> Batch:
        """Read the samples of one request.

        Raises:
            UserError: a subclass brings a reader of its own, and no :meth:`example`.
        """
        raise UserError(f"{type(self).__name__}: a source defines batch, or reader and example")

    def reader(self, config: DataConfig, delivery: Delivery) -> Reader:
        """Return who reads the samples as the ``data`` section and ``delivery`` say."""
        return BatchReader(self, delivery)

    def example(self, samples: int, delivery: Delivery, extent: int | None = None) -> Batch:
        """Return a batch of the kind that training will see, to try a model on."""
        first = np.arange(samples) % len(self)
        return self.batch(Request(0, first, first, extent), delivery)


class BatchReader(Reader):
    """Reads batch after batch in the calling thread."""

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
        """The file, or whatever else names the sample."""
        return str(self.args[0])

    def __str__(self) -> str:
        return printable(f"{self.args[0]}: {self.args[1]}")


def required_root(config: DataConfig, expected: str) -> str:
    """Return ``data.root`` or raise the error that says what it should name."""
    if config.root is None:
        raise UserError(f"data.root is not set: data.name={config.name!r} needs {expected}")
    return config.root
