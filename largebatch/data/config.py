"""The ``data`` section of a config."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from largebatch._errors import UserError
from largebatch._keys import FREE, OF_RANK
from largebatch._paths import UserPath
from largebatch.data.registry import datasets


@dataclass
class DataConfig:
    """What is trained on, where it lies and how it is read."""

    name: str = "digits"
    """Data set: digits, mnist, fashion_mnist, cifar10, cifar100, arrays, imagefolder, quadratic,
    synthetic or
    package.module:callable (called with "train" or "val", returns a map-style data set)."""

    root: UserPath | None = field(default=None, metadata=FREE | OF_RANK)
    """Folder of the data set (for arrays: the .npz file); digits and synthetic need none."""

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

    augment: Literal["none", "standard"] = "standard"
    """standard: random crop and flip for photographs (CIFAR: padded by 4 pixels; imagefolder:
    random resized crop), nothing for digits; none: no randomness in the pixels."""

    mixup: float = 0.0
    """Parameter alpha of mixup's Beta(alpha, alpha); 0 turns it off."""

    cutmix: float = 0.0
    """Parameter alpha of CutMix's Beta(alpha, alpha); 0 turns it off."""

    limit: int | None = None
    """Train on so many samples: every class gives its share, chosen by a fixed key. Of data sets of
    your own that is so where they have ``targets`` or ``labels``; of others, any samples."""

    def check(self) -> None:
        """Refuse numbers out of range, and a pipeline that has nothing to decode.

        Raises:
            UserError: naming the key.
        """
        for name, least in (("skip_corrupt", 0), ("mixup", 0), ("cutmix", 0)):
            value = getattr(self, name)
            if not least <= value < float("inf"):
                raise UserError(f"data.{name}={value}: must be {least} or more")
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
