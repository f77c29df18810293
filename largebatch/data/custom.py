"""``package.module:callable``: any map-style data set as a source."""

from __future__ import annotations

import math
import operator
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from largebatch._errors import UserError
from largebatch.data.colour import rgb
from largebatch.data.config import DataConfig
from largebatch.data.draws import Stream, key
from largebatch.data.foreign import foreign_code
from largebatch.data.limit import limited
from largebatch.data.sample_source import SampleSource
from largebatch.data.source import Source, Split, UnreadableSample


class DatasetSource(SampleSource):
    """A map-style data set that returns (image, label).

    Images are PIL images, numpy arrays (height, width, channels) or tensors (channels, height,
    width), uint8 or float, all of one kind. Labels are single whole numbers. Bytes are scaled to
    [0, 1]; ``mean`` and ``std`` attributes of the data set, per channel, normalise after that.
    Before each sample the generators of torch, numpy and ``random`` are seeded from (seed, epoch,
    index).

    A sample that the data set cannot read (an OSError, an EOFError, Pillow's errors for a file)
    counts for ``data.skip_corrupt``. Any other error is a mistake in the data set. It ends the run
    with one line that names the sample.

    Args:
        name: ``data.name``.
        dataset: the data set.
        chosen: which of its samples are used: int64 (n,).
        num_classes: labels are in [0, num_classes).
        image_size: side of the images in pixels (None: the data set's own size, the same for all).
        unreadable: how many of the first samples may be unreadable before a readable one, from
            which the form of samples is learnt.
    """

    def __init__(
        self,
        name: str,
        dataset: Any,
        chosen: NDArray[np.int64],
        num_classes: int,
        image_size: int | None,
        unreadable: int = 0,
    ) -> None:
        self._where, self._dataset, self._chosen = f"data.name={name!r}", dataset, chosen
        self._name, self._size = name, image_size
        image = self._first(unreadable)
        self.dtype = image.dtype
        channels, height, width = image.shape
        shape = channels, image_size or height, image_size or width
        mean, std = (self._per_channel(name, channels, value) for name, value in _PLAIN.items())
        if min(std) <= 0:
            raise UserError(f"{self._where}: std={std}: must be above 0")
        scale = 1 / 255 if image.dtype == torch.uint8 else 1.0
        super().__init__(num_classes, shape, mean, std, scale)

    def __len__(self) -> int:
        return len(self._chosen)

    def load(
        self, index: int, epoch: int, seed: int, image_size: int | None, augment: bool
    ) -> tuple[Tensor, int]:
        """Read one sample with all random generators seeded by it; see `SampleSource.load`."""
        number = int(self._chosen[index])
        with _Seeded(key(seed, epoch, index, Stream.SAMPLE)):
            image, label = self._sample(number)
        if not 0 <= label < self.num_classes:
            raise UserError(
                f"{self._where}: label {label} of sample {number} is out of range; "
                f"labels are 0 to {self.num_classes - 1}"
            )
        channels = self.image_shape[0]
        if len(image) != channels or image.dtype != self.dtype:
            raise UserError(
                f"{self._where}: sample {number} has {_kind(len(image), image.dtype)}, others have "
                f"{_kind(channels, self.dtype)}; let all be of one kind, by PIL's "
                "image.convert('RGB') for example"
            )
        size = image_size or self._size
        if size is None and image.shape != self.image_shape:
            raise UserError(
                f"{self._where}: sample {number} is {tuple(image.shape)}, others are "
                f"{self.image_shape}; set data.image_size"
            )
        if size is not None and tuple(image.shape[-2:]) != (size, size):
            image = torch.nn.functional.interpolate(
                image[None], (size, size), mode="bilinear", antialias=True
            )[0]
        return image, label

    def _first(self, unreadable: int) -> Tensor:
        """Return the image of the first sample that can be read."""
        for number in self._chosen.tolist():
            try:
                with _Seeded(0):
                    return self._sample(number)[0]
            except UnreadableSample as error:
                if unreadable == 0:
                    raise UserError(f"{self._where}: unreadable image {error}") from None
                unreadable -= 1
        raise UserError(f"{self._where}: no sample can be read")

    def _per_channel(self, name: str, channels: int, plain: float) -> tuple[float, ...]:
        """Return the data set's mean or std, one finite number for each channel."""
        given = getattr(self._dataset, name, (plain,) * channels)
        try:
            values = tuple(float(value) for value in given)
        except (TypeError, ValueError):
            values = ()
        if len(values) != channels or not all(map(math.isfinite, values)):
            raise UserError(
                f"{self._where}: {name}={given}: mean and std need one value per channel "
                f"({channels}), std above 0"
            )
        return values

    def _sample(self, number: int) -> tuple[Tensor, int]:
        where = f"{self._where}: sample {number}"
        with foreign_code(where, f"{self._name}[{number}]"):
            sample = self._dataset[number]
        if not isinstance(sample, (tuple, list)) or len(sample) != 2:
            raise UserError(f"{where} is {type(sample).__name__}; expected (image, label)")
        # Pillow may read the file only now.
        with foreign_code(where, f"{self._name}[{number}]"):
            image = _pixels(f"{self._where}: image {number}", sample[0])
        return image, _label(where, sample[1])


_PLAIN = {"mean": 0.0, "std": 1.0}


def _kind(channels: int, dtype: torch.dtype) -> str:
    return f"{channels} channel{'s' if channels > 1 else ''} of {str(dtype).removeprefix('torch.')}"


def _pixels(where: str, image: Any) -> Tensor:
    """Return an image as uint8 or float32 (channels, height, width)."""
    if not isinstance(image, Tensor):
        if getattr(image, "mode", None) in ("P", "PA"):  # else its indices would pass for pixels
            image = rgb(image.copy())
        # A copy: PIL lends its memory read-only.
        array = np.array(image)
        if array.ndim == 2:
            array = array[:, :, None]
        if array.ndim != 3 or not (array.dtype == np.uint8 or array.dtype.kind == "f"):
            raise _no_image(where, array.dtype, array.shape, "(height, width, channels)")
        if array.dtype.itemsize > 8:  # torch has no such type
            array = array.astype(np.float64)
        image = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))
    known = image.dtype == torch.uint8 or image.is_floating_point()
    if image.ndim != 3 or image.numel() == 0 or not known:
        raise _no_image(where, image.dtype, image.shape, "(channels, height, width)")
    if image.dtype == torch.uint8:
        return image
    narrow = image.float()
    if image.dtype == torch.float64 and bool((narrow.isinf() & image.isfinite()).any()):
        raise UserError(f"{where} has values beyond float32, whose largest is 3.4e38")
    return narrow


def _no_image(where: str, dtype: object, shape: Any, expected: str) -> UserError:
    return UserError(
        f"{where} is {dtype} of shape {tuple(shape)}; expected uint8 or float {expected}"
    )


def _label(where: str, label: Any) -> int:
    """Return a label as an integer; refuse what is no single whole number."""
    value = label.tolist() if hasattr(label, "tolist") else label
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    try:
        return operator.index(value)
    except TypeError:
        pass
    if isinstance(value, (str, bytes)):
        reason = f"{value!r:.80} is text; number the classes from 0"
    elif isinstance(value, (list, tuple)):
        reason = f"holds {len(value)} values; of a one-hot label return its argmax"
    elif isinstance(value, float):
        reason = f"{value} is no whole number"
    else:
        reason = f"is {type(value).__name__}; expected a whole number"
    raise UserError(f"{where}: its label {reason}")


class _Seeded:
    """Seeds torch's CPU generator, numpy's and Python's, and puts their states back."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    # ruff: noqa: NPY002 - the user's data set draws from the global generators, so they are seeded.
    def __enter__(self) -> None:
        self._states = torch.get_rng_state(), np.random.get_state(), random.getstate()
        torch.default_generator.manual_seed(self._seed)
        np.random.seed(self._seed & 0xFFFFFFFF)
        random.seed(self._seed)

    def __exit__(self, *_: object) -> None:
        torch.set_rng_state(self._states[0])
        np.random.set_state(self._states[1])
        random.setstate(self._states[2])


def custom_source(
    make: Callable[..., Any], config: DataConfig, split: Split, num_classes: int | None
) -> Source:
    """Call the user's function with the split and wrap the data set it returns.

    A :class:`~largebatch.data.source.Source` is used unchanged. For a data set, the number of
    classes is ``model.num_classes``, else its attribute ``num_classes``, else the length of its
    ``classes``. ``data.limit`` keeps the shares of classes if the data set has labels in
    ``targets`` or ``labels``, as torchvision's have. Otherwise it takes samples by a fixed hash,
    since no sample is read to learn its label.

    Raises:
        UserError: the function or the data set does not have the required form.
    """
    where = f"data.name={config.name!r}"
    with foreign_code(f"{where}: called with {split!r}"):
        dataset = make(split)
    if isinstance(dataset, Source):
        return dataset
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise UserError(
            f"{where}: returned {type(dataset).__name__}; expected a map-style "
            "data set with __getitem__ and __len__"
        )
    with foreign_code(f"{where}: its length"):
        length = len(dataset)
    if length == 0:
        raise UserError(f"{where}: the data set of split {split!r} is empty")
    with foreign_code(f"{where}: its attributes"):
        if num_classes is None:
            num_classes = getattr(dataset, "num_classes", None)
        if num_classes is None and hasattr(dataset, "classes"):
            num_classes = len(dataset.classes)
        known = split == "train" and config.limit is not None
        labels = _labels_known(dataset, length) if known else np.zeros(length, dtype=np.int64)
        chosen = limited(labels, config, split)
    if num_classes is None:
        raise UserError(
            f"{where}: set model.num_classes, or give the data set an attribute "
            "num_classes or classes"
        )
    if not isinstance(num_classes, (int, np.integer)) or num_classes < 1:
        raise UserError(f"{where}: num_classes={num_classes!r}: must be a whole number from 1 on")
    return DatasetSource(
        config.name, dataset, chosen, int(num_classes), config.image_size, config.skip_corrupt
    )


def _labels_known(dataset: Any, length: int) -> NDArray[Any]:
    """Return the labels that a data set tells without being read, or one class for all."""
    for name in ("targets", "labels"):
        told = getattr(dataset, name, None)
        try:
            labels = np.asarray(told)
        except (TypeError, ValueError):  # of several lengths
            continue
        if labels.shape == (length,) and labels.dtype.kind in "biufUS":
            return labels
    return np.zeros(length, dtype=np.int64)
