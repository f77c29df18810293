"""From the config's sections to a model."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from largebatch._errors import UserError
from largebatch._registry import Entry
from largebatch.models.config import ModelConfig
from largebatch.models.init import initialize
from largebatch.models.registry import ImageShape, models
from largebatch.models.weights import load_weights
from largebatch.nn import NormConfig, apply_norm, fix_classifier, fuse


def build_model(
    config: ModelConfig,
    norm: NormConfig,
    num_classes: int,
    image_shape: ImageShape,
    dtype: torch.dtype = torch.float32,
    seed: int | None = None,
) -> nn.Module:
    """Build the model that ``config`` names, with the norms that ``norm`` asks for.

    Args:
        config: the ``model`` section; ``compile`` is left to the caller.
        norm: the ``norm`` section.
        num_classes: outputs; ``config.num_classes`` goes before.
        image_shape: (channels, height, width) of the images.
        dtype: type of the parameters; values are drawn in torch's default type, so a float64 model
            starts from the float32 one's values.
        seed: draw the weights from this seed and leave torch's generator as it was; None draws
            from torch's generator.

    Raises:
        UserError: the model does not exist, does not fit the images, or lacks an option that is
            set; the weights to start from do not fit.
    """
    config.check()
    entry = models.entry(config.name)
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        classes = config.num_classes or num_classes
        model = _construct(entry, config, classes, image_shape)
        if config.classifier != "learned":
            model = fix_classifier(model, config.classifier)
        initialize(model, config.init)
    if entry.name not in models:
        try_images(model, config.name, classes, image_shape)
    model = fuse(apply_norm(model, norm))
    if config.init_from is not None:
        load_weights(model, config.init_from)
    model = model.to(dtype)
    return model.to(memory_format=torch.channels_last) if config.channels_last else model


def _construct(
    entry: Entry[Any], config: ModelConfig, num_classes: int, image_shape: ImageShape
) -> nn.Module:
    """Call the factory with what its signature names, and refuse options that it does not."""
    try:
        parameters = inspect.signature(entry.factory).parameters
    except ValueError:  # some callables written in C have none
        parameters = inspect.signature(lambda: None).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    given: dict[str, Any] = {}
    if "num_classes" in parameters or anything:
        given["num_classes"] = num_classes
    if "image_shape" in parameters:
        given["image_shape"] = image_shape
    for key, unset in (("residual_gamma", None), ("drop", None), ("drop_path", 0.0)):
        value = getattr(config, key)
        if value == unset:
            continue
        if key not in parameters:
            raise UserError(f"model.{key}={value}: model.name={entry.name} has no such option")
        given[key] = value
    try:
        inspect.Signature(list(parameters.values())).bind(**given)
    except TypeError as error:
        raise UserError(
            f"model.name={entry.name}: cannot be called with {', '.join(given)}: {error}"
        ) from None
    model = entry.factory(**given)
    if not isinstance(model, nn.Module):
        raise UserError(
            f"model.name={entry.name}: returned a {type(model).__name__}, not a torch.nn.Module"
        )
    return model


def try_images(model: nn.Module, name: str, num_classes: int, image_shape: ImageShape) -> None:
    """Run two blank images through ``model`` in evaluation; the model is as before afterwards.

    For models that are not ours, and for image sizes that a later phase brings (f1, c1 and c3 are
    built for one size), so that a misfit is found before any work.

    Raises:
        UserError: naming the model, when it cannot take (channels, height, width), or does not
            return (N, num_classes) logits.
    """
    training = [(module, module.training) for module in model.modules()]
    first = next(model.parameters(), torch.zeros(()))
    try:
        with torch.no_grad():
            out = model.eval()(torch.zeros(2, *image_shape, dtype=first.dtype, device=first.device))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        shape = "x".join(map(str, image_shape))
        raise UserError(f"model.name={name}: cannot take images of {shape}: {error}") from error
    finally:
        for module, flag in training:
            module.training = flag
    if not isinstance(out, torch.Tensor) or out.shape != (2, num_classes):
        what = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
        raise UserError(
            f"model.name={name}: must return logits of shape (N, {num_classes}) for N images, "
            f"returned {what} for 2; model.num_classes sets the number"
        )
