"""The registry of models, from which ``model.name`` chooses.

A factory is called with the arguments that its signature names. They may be the data's offers:
``num_classes`` and ``image_shape`` (channels, height, width) of images, ``vocabulary`` and
``context`` of text. They may be options: ``residual_gamma``, ``drop``, ``drop_path``, and the sizes
of transformers (``layers``, ``heads``, ``width``, ``memory``, ``tied_embeddings``). An option that
is set in the config but not in the signature is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from largebatch._errors import UserError
from largebatch._registry import Facts, Registry

ImageShape = tuple[int, int, int]

models: Registry[Callable[..., nn.Module], Facts] = Registry(
    "model.name", lambda _: Facts(), importable=True
)


def image_offers(num_classes: int, image_shape: ImageShape) -> dict[str, Any]:
    """Return the offers of labelled images to a model, without a data set."""
    return {"num_classes": num_classes, "image_shape": image_shape}


def need_size(name: str, image_shape: ImageShape, least: int) -> None:
    """Refuse images smaller than ``least`` pixels a side.

    Raises:
        UserError: the message names the keys and the sizes that the model takes.
    """
    _, height, width = image_shape
    if min(height, width) < least:
        raise UserError(
            f"data.image_size: model.name={name} takes images of at least {least}x{least}, "
            f"not {height}x{width}"
        )
