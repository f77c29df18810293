"""The ``data`` section of a config."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from largebatch._errors import UserError
from largebatch._keys import FREE, OF_RANK, SETTLED
from largebatch._paths import UserPath
from largebatch.data.registry import datasets

OF_TEXT = ("tokenizer", "context", "vocabulary", "held_out", "streams", "digest")
OF_IMAGES = ("image_size", "mixup", "mixup_layers", "cutmix", "skip_corrupt")
OF_VIEWS = ("least_area", "jitter", "blur")


@dataclass
class DataConfig:
    """The training data: which data set, where it is and how it is read."""

    name: str = "digits"
    """Data set: digits, mnist, fashion_mnist, cifar10, cifar100, arrays, imagefolder, quadratic,
    synthetic, text, stdlib or package.module:callable (called with "train" or "val", returns a
    map-style data set)."""

    root: UserPath | None = field(default=None, metadata=FREE | OF_RANK)
    """Folder of the data set (for arrays: the .npz file; for text: a file or folder); digits,
    synthetic and stdlib need none."""

    skip_corrupt: int = 0
    """How many unreadable images to leave out before the run ends with an error. Of a data set of
    your own, those are samples that raise an OSError, an EOFError or an error of Pillow's."""

    pipeline: Literal["torchvision", "dali"] = "torchvision"
    """What decodes and resizes the images: torchvision's operators in worker processes, or NVIDIA
    DALI (imagefolder only; on the GPU where there is one). Order, crops and flips are the same."""

    workers: int | None = field(default=None, metadata=FREE | OF_RANK)
    """Worker processes (dali: threads) of a rank for data read sample by sample (None: its share of
    the cores); data held in memory needs none."""

    image_size: int | None = None
    """Side of the square images fed to the model, in pixels (None: the data set's own)."""

    augment: Literal["none", "standard", "views"] = "standard"
    """standard: random crop and flip for photographs (CIFAR: padded by 4 pixels; imagefolder:
    random resized crop), nothing for digits; none: no randomness in the pixels; views: two views of
    each image by SimCLR's random resized crop, flip (not of digits) and colour distortion."""

    least_area: float = 0.08
    """Views: least share of an image's area that a crop shows."""

    jitter: float = 0.5
    """Views: strength s of the colour distortion (SimCLR: 0.5 for CIFAR, 1 for ImageNet); 0: none,
    and no greys."""

    blur: bool = False
    """Views: blur half of them (SimCLR: for ImageNet, not for CIFAR)."""

    mixup: float = 0.0
    """Parameter alpha of mixup's Beta(alpha, alpha); 0 turns it off."""

    mixup_layers: list[int | str] = field(default_factory=list)
    """Where mixup mixes, each ghost in one of them: input, and top-level blocks of the model by
    name or by index from 0, whose output is mixed (manifold mixup), such as [input, 0, layer2];
    []: the inputs alone."""

    cutmix: float = 0.0
    """Parameter alpha of CutMix's Beta(alpha, alpha); 0 turns it off."""

    limit: int | None = None
    """Train on so many samples: every class gives its share, chosen by a fixed key. Of data sets of
    your own that is so where they have ``targets`` or ``labels``; of others, any samples. Of text:
    the first windows."""

    tokenizer: Literal["bytes", "characters", "uint16", "uint32"] | UserPath | None = field(
        default=None, metadata=OF_RANK
    )
    """Text: what a token is: a byte, a character, a number of a file that is tokenised already, or
    what a JSON file of Hugging Face's tokenizers says. Null: bytes; of a .bin file uint16."""

    context: int | None = None
    """Text: tokens that a window holds, each predicted from those before (null: 128)."""

    vocabulary: int | None = None
    """Text: how many tokens the model knows (null: as many as the tokenizer; of a file of numbers,
    the largest and one)."""

    held_out: float | None = None
    """Text: share at the end that is held out for validation (null: 0.1), where there is no
    validation text of its own (val.txt, val.bin or a folder val)."""

    streams: int | None = None
    """Text: read so many streams side by side, each on from where the step before it ended, for
    models with a memory; batch.size is as many. Null: windows in a random order."""

    digest: str | None = field(default=None, metadata=SETTLED)
    """Text: hash of it and of its tokenizer; null: worked out and kept in config.yaml, so that a
    run goes on with the same text alone."""

    def check(self) -> None:
        """Refuse numbers out of range, and a decoding pipeline for data that need no decoding.

        Raises:
            UserError: the message names the key.
        """
        for name, least in (("skip_corrupt", 0), ("mixup", 0), ("cutmix", 0)):
            value = getattr(self, name)
            if not least <= value < float("inf"):
                raise UserError(f"data.{name}={value}: must be {least} or more")
        if self.mixup_layers and not self.mixup:
            raise UserError(
                f"data.mixup_layers={self.mixup_layers}: data.mixup is 0: nothing mixes"
            )
        if self.workers is not None and self.workers < 0:
            raise UserError(f"data.workers={self.workers}: must be 0 or more")
        for name in ("image_size", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"data.{name}={value}: must be 1 or more")
        if self.pipeline != "torchvision" and not datasets.entry(self.name).facts.image_files:
            files = datasets.where(lambda facts: facts.image_files)
            raise UserError(
                f"data.pipeline={self.pipeline} reads image files: data.name={files},"
                f" not {self.name}"
            )
        self._check_views()
        self._check_text()

    def _check_views(self) -> None:
        """Refuse keys of views out of range or without views, and what views cannot be had with."""
        if not 0 < self.least_area <= 1:
            raise UserError(f"data.least_area={self.least_area}: above 0, at most 1")
        if not 0 <= self.jitter <= 2:
            raise UserError(f"data.jitter={self.jitter}: from 0 to 2")
        if self.augment == "views":
            for name, without in (("mixup", 0), ("cutmix", 0), ("pipeline", "torchvision")):
                value = getattr(self, name)
                if value != without:
                    raise UserError(
                        f"data.{name}={value}: data.augment=views goes with {name}={without} alone"
                    )
            return
        for name in OF_VIEWS:
            value, unset = getattr(self, name), getattr(DataConfig, name)
            if value != unset:
                raise UserError(f"data.{name}={value}: is of data.augment=views alone")

    def _check_text(self) -> None:
        """Refuse keys of text out of range or without text, and keys of images with it."""
        for name in ("context", "streams", "vocabulary"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"data.{name}={value}: must be 1 or more")
        if self.held_out is not None and not 0 < self.held_out < 1:
            raise UserError(f"data.held_out={self.held_out}: between 0 and 1")
        text = datasets.entry(self.name).facts.text
        for name in OF_TEXT if not text else OF_IMAGES:
            value = getattr(self, name)
            if value:
                kind = "windows of text" if text else "no text"
                raise UserError(f"data.{name}={value}: data.name={self.name} is {kind}")
