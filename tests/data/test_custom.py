"""Mistakes in a data set of the user's own: one line that names the sample, and what to do."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, UnidentifiedImageError

from largebatch._errors import UserError
from largebatch.data import Batch, DataConfig, Request
from largebatch.data.custom import DatasetSource, custom_source

Read = Callable[..., list[Batch]]
Ask = Callable[..., Request]


class Set:
    """Six samples, the fourth of which is what a test makes of it."""

    num_classes: Any = 3

    def __init__(self, make: Callable[[], Any], image: Any = None) -> None:
        self.make = make
        self.image = torch.zeros(3, 4, 4) if image is None else image

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        return self.make() if index == 3 else (self.image, index % 3)


def raising(error: BaseException) -> Callable[[], Any]:
    def make() -> Any:
        raise error

    return make


def source(dataset: Any, **keys: Any) -> tuple[DatasetSource, DataConfig]:
    config = DataConfig(name="mine:make", **keys)
    return custom_source(lambda split: dataset, config, "train", None), config


def message(read: Read, ask: Ask, dataset: Any, workers: int = 0, **keys: Any) -> str:
    made, config = source(dataset, workers=workers, **keys)
    with pytest.raises(UserError) as caught:
        read(made, config, [ask([0, 3])])
    assert str(caught.value).startswith("data.name='mine:make': ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    return str(caught.value).removeprefix("data.name='mine:make': ")


PIXELS = torch.zeros(3, 4, 4)


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        ("cat", "its label 'cat' is text; number the classes from 0"),
        ("1", "its label '1' is text"),
        (np.str_("cat"), "its label 'cat' is text"),
        (b"cat", "its label b'cat' is text"),
        (torch.eye(3)[1], "its label holds 3 values; of a one-hot label return its argmax"),
        (np.eye(3)[1], "its label holds 3 values"),
        ([0, 1, 0], "its label holds 3 values"),
        (torch.tensor([], dtype=torch.long), "its label holds 0 values"),
        (2.5, "its label 2.5 is no whole number"),
        (torch.tensor(0.5), "its label 0.5 is no whole number"),
        (torch.tensor(1.5, dtype=torch.bfloat16), "its label 1.5 is no whole number"),
        (math.nan, "its label nan is no whole number"),
        (np.float32(np.inf), "its label inf is no whole number"),
        (None, "its label is NoneType; expected a whole number"),
        ({"label": 1}, "its label is dict"),
        (1 + 0j, "its label is complex"),
        (-1, "label -1 of sample 3 is out of range; labels are 0 to 2"),
        (3, "label 3 of sample 3 is out of range"),
        (2**80, "of sample 3 is out of range"),
    ],
    ids=str,
)
def test_labels_that_are_no_class(read: Read, ask: Ask, label: Any, reason: str) -> None:
    found = message(read, ask, Set(lambda: (PIXELS, label)))
    assert reason in found
    assert "sample 3" in found


@pytest.mark.parametrize(
    "label",
    [2, True, 2.0, np.int64(2), np.uint8(2), np.array(2), np.array([2]), np.float64(2),
     torch.tensor(2), torch.tensor([[2]]), torch.tensor(2.0), torch.tensor(2, dtype=torch.uint8)],
    ids=repr,
)  # fmt: skip
def test_whole_numbers_of_every_type_are_labels(read: Read, ask: Ask, label: Any) -> None:
    made, config = source(Set(lambda: (PIXELS, label)), workers=0)
    (batch,) = read(made, config, [ask([3])])
    assert batch.targets.tolist() == [1 if label is True else 2]


class OneOfTheirOwn(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyError("missing"), "sample 3: KeyError: 'missing' (test_custom.py, line "),
        (ValueError("odd\nlines"), "sample 3: ValueError: odd lines (test_custom.py"),
        (IndexError(), "sample 3: IndexError (test_custom.py"),
        (StopIteration(), "sample 3: StopIteration"),
        (RuntimeError("CUDA"), "sample 3: RuntimeError: CUDA"),
        (MemoryError(), "sample 3: MemoryError"),
        (OneOfTheirOwn("x" * 10_000), "sample 3: OneOfTheirOwn: xxx"),
        (SyntaxError("of a module", ("a.py", 1, 1, "x", 1, 1)), "sample 3: SyntaxError"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_a_data_set_name_the_sample_and_are_not_skipped(
    read: Read, ask: Ask, error: Exception, reason: str, workers: int
) -> None:
    assert reason in message(read, ask, Set(raising(error)), workers, skip_corrupt=5)


@pytest.mark.parametrize(
    "error",
    [
        OSError("image file is truncated"),
        FileNotFoundError(2, "No such file or directory", "x.jpg"),
        Image.DecompressionBombError("Image size (225000000 pixels) exceeds limit"),
        UnidentifiedImageError("cannot identify image file"),
        SyntaxError("broken PNG file"),
        EOFError("ended early"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_files_that_cannot_be_decoded_are_skipped_if_allowed(
    read: Read, ask: Ask, error: Exception
) -> None:
    made, config = source(Set(raising(error)), workers=0, skip_corrupt=1)
    (batch,) = read(made, config, [ask(range(6))])
    assert batch.indices.tolist() == [0, 1, 2, 4, 5]
    config.skip_corrupt = 0
    with pytest.raises(UserError, match=r"unreadable image mine:make\[3\]: .*skip_corrupt=0"):
        read(made, config, [ask(range(6))])


def test_a_first_sample_that_cannot_be_decoded_counts_too() -> None:
    class Late(Set):
        def __getitem__(self, index: int) -> Any:
            if index < 2:
                raise OSError("truncated")
            return super().__getitem__(index)

    dataset = Late(lambda: (PIXELS, 0))
    assert source(dataset, skip_corrupt=2)[0].image_shape == (3, 4, 4)
    with pytest.raises(UserError, match=r"unreadable image mine:make\[1\]: truncated"):
        source(dataset, skip_corrupt=1)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (
            torch.zeros(1, 4, 4),
            "sample 3 has 1 channel of float32, others have 3 channels of float",
        ),
        (
            torch.zeros(3, 4, 4, dtype=torch.uint8),
            "sample 3 has 3 channels of uint8, others have 3",
        ),
        (torch.zeros(3, 5, 4), "sample 3 is (3, 5, 4), others are (3, 4, 4); set data.image_size"),
        (torch.zeros(4, 4), "image 3 is torch.float32 of shape (4, 4); expected uint8 or float"),
        (torch.zeros(3, 0, 4), "of shape (3, 0, 4)"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "image 3 is torch.int64"),
        (np.zeros((4, 4, 3), np.int32), "image 3 is int32"),
        (np.zeros(4), "image 3 is float64 of shape (4,); expected uint8 or float (height, width"),
        (np.full((4, 4, 3), 1e300), "image 3 has values beyond float32"),
        ("path/to/x.jpg", "image 3 is <U13 of shape ()"),
        (None, "image 3 is object"),
        ([[1.0], [2.0, 3.0]], "sample 3: ValueError"),
    ],
    ids=str,
)
def test_images_of_another_kind_than_the_others(
    read: Read, ask: Ask, image: Any, reason: str
) -> None:
    assert reason in message(read, ask, Set(lambda: (image, 0)))


def test_a_grey_image_among_colours_is_told_from_one_of_another_size(read: Read, ask: Ask) -> None:
    colour, grey = Image.new("RGB", (4, 4)), Image.new("L", (4, 4))
    for size in (None, 8):
        found = message(read, ask, Set(lambda: (grey, 0), colour), image_size=size)
        assert "sample 3 has 1 channel of uint8, others have 3 channels of uint8" in found
        assert "image.convert('RGB')" in found
        assert "image_size" not in found


@pytest.mark.parametrize("sample", [3, None, (1,), (1, 2, 3), {"image": 1, "label": 2}, "ab"])
def test_samples_that_are_no_pairs(read: Read, ask: Ask, sample: Any) -> None:
    found = message(read, ask, Set(lambda: sample))
    assert f"sample 3 is {type(sample).__name__}; expected (image, label)" in found


def test_a_palette_is_looked_up_rather_than_taken_for_grey(read: Read, ask: Ask) -> None:
    colours = np.array([[[250, 10, 20], [0, 130, 255]]], np.uint8)
    palette = Image.fromarray(colours).quantize(2)
    made, _ = source(Set(lambda: (palette, 0), Image.fromarray(colours)))
    image, _ = made.load(3, 0, 0, None, False)
    assert np.array_equal(image.permute(1, 2, 0).numpy(), colours)
    assert palette.mode == "P"


def test_a_lazily_read_image_is_decoded_where_it_counts(read: Read, ask: Ask) -> None:
    buffer = io.BytesIO()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "JPEG")
    half = buffer.getvalue()[:2000]
    dataset = Set(lambda: (Image.open(io.BytesIO(half)), 0), torch.zeros(3, 64, 64).byte())
    made, config = source(dataset, workers=0, skip_corrupt=1)
    (batch,) = read(made, config, [ask(range(6))])
    assert batch.indices.tolist() == [0, 1, 2, 4, 5]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_classes": "10"}, r"num_classes='10': must be a whole number"),
        ({"num_classes": 2.5}, r"num_classes=2.5: must be"),
        ({"num_classes": 0}, r"num_classes=0: must be"),
        ({"mean": 0.5}, r"mean=0.5: mean and std need one value per channel \(3\)"),
        ({"mean": (0.1, "x", 0.3)}, r"mean and std need one value per channel"),
        ({"std": (1.0, math.nan, 1.0)}, r"mean and std need"),
        ({"std": (1.0, 0.0, 1.0)}, r"std=\(1.0, 0.0, 1.0\): must be above 0"),
        ({"std": (1.0,)}, r"mean and std need one value per channel"),
    ],
    ids=str,
)
def test_attributes_that_are_not_what_they_should_be(changes: dict[str, Any], reason: str) -> None:
    dataset = Set(lambda: (PIXELS, 0))
    for name, value in changes.items():
        setattr(dataset, name, value)
    with pytest.raises(UserError, match=reason):
        source(dataset)


def test_errors_before_the_first_sample_are_one_line() -> None:
    def broken(split: str) -> Any:
        raise KeyError(split)

    config = DataConfig(name="mine:make", limit=2)
    with pytest.raises(UserError, match=r"called with 'train': KeyError: 'train' \(test_custom.py"):
        custom_source(broken, config, "train", None)

    class Length(Set):
        def __len__(self) -> int:
            raise TypeError("no length")

    with pytest.raises(UserError, match=r"its length: TypeError: no length"):
        source(Length(lambda: None))

    class Targets(Set):
        @property
        def targets(self) -> Any:
            raise ValueError("not loaded")

    with pytest.raises(UserError, match=r"its attributes: ValueError: not loaded"):
        source(Targets(lambda: None), limit=2)
    source(Targets(lambda: None))  # nobody asks


def test_a_limited_data_set_names_its_own_samples(read: Read, ask: Ask) -> None:
    class Numbered(Set):
        num_classes = 60
        targets = np.arange(60) // 30

        def __len__(self) -> int:
            return 60

        def __getitem__(self, index: int) -> Any:
            return torch.full((1, 2, 2), float(index)), index if index < 50 else "late"

    made, config = source(Numbered(lambda: None), limit=20, workers=0)
    chosen = [int(made._chosen[index]) for index in range(20)]
    assert sum(number < 30 for number in chosen) == 10
    late = next(index for index, number in enumerate(chosen) if number >= 50)
    with pytest.raises(UserError, match=rf"sample {chosen[late]}: its label 'late' is text"):
        read(made, config, [ask([late])])
    (batch,) = read(made, config, [ask([0, 1])])
    assert batch.inputs[:, 0, 0, 0].tolist() == batch.targets.tolist() == chosen[:2]
