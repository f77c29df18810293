"""The ``model`` section of a run's config."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from largebatch._errors import UserError
from largebatch._keys import OF_RANK
from largebatch._paths import UserPath

OPTIONS = {
    "residual_gamma": None,
    "drop": None,
    "drop_path": 0.0,
    **dict.fromkeys(("layers", "heads", "width", "memory", "tied_embeddings")),
}
"""Keys that a model takes if its signature names them, and their values where they are not set."""


@dataclass
class ModelConfig:
    """The network and its initial weights."""

    name: str = "digits_cnn"
    """A registered model, or package.module:callable that returns one."""
    num_classes: int | None = None
    """Outputs; unset takes the number of classes of the data."""
    init_from: UserPath | None = field(default=None, metadata=OF_RANK)
    """A .safetensors file of weights to start from, such as a run's weights.safetensors."""
    compile: bool = False
    """Compile the model with torch.compile."""
    channels_last: bool = True
    """Keep images and convolution weights in channels-last memory order."""
    residual_gamma: float | None = None
    """Initial scale of the last norm of every residual block (Goyal et al. 2017: 0), or of what
    scales the branch without norms; unset: 1, in nf_resnet50 0."""
    classifier: Literal["learned", "hadamard", "orthonormal"] = "learned"
    """The last linear layer: learned, or fixed but for a scale and biases, by the rows of a
    Hadamard or of a random orthonormal matrix (Hoffer et al. 2018, Fix your classifier)."""
    init: Literal["default", "kaiming", "xavier"] = "default"
    """Initial weights of linear and convolution layers: the model's own, N(0, 2/fan_in), or
    uniform within sqrt(6/(fan_in + fan_out)); biases are 0 in the last two."""
    drop: float | None = None
    """Probability to drop an activation where the model has dropout; unset: the model's own."""
    drop_path: float = 0.0
    """Probability to drop the last residual block for a sample; in proportion to depth before."""
    layers: int | None = None
    """Transformers: number of layers; unset, here and below: the model's own."""
    heads: int | None = None
    """Transformers: attention heads of a layer."""
    width: int | None = None
    """Transformers: width of the residual stream, a multiple of the heads."""
    memory: int | None = None
    """transformer_xl: tokens it remembers (unset: data.context); 0: none."""
    tied_embeddings: bool | None = None
    """Transformers: the output layer is the table of embeddings."""

    def check(self) -> None:
        """Check what can be known without building the model.

        Raises:
            UserError: a key is out of range.
        """
        if self.num_classes is not None and self.num_classes < 2:
            raise UserError(f"model.num_classes={self.num_classes}: must be at least 2")
        for key, least in (("layers", 1), ("heads", 1), ("width", 1), ("memory", 0)):
            value = getattr(self, key)
            if value is not None and value < least:
                raise UserError(f"model.{key}={value}: must be {least} or more")
        for key in ("drop", "drop_path"):
            value = getattr(self, key)
            if value is not None and not 0.0 <= value < 1.0:
                raise UserError(f"model.{key}={value}: must lie in 0 to 1, below 1")
        if self.residual_gamma is not None and not math.isfinite(self.residual_gamma):
            raise UserError(f"model.residual_gamma={self.residual_gamma}: must be finite")
