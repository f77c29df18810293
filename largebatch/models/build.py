"""Build a model from the config sections ``model`` and ``norm``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import fields
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from largebatch._errors import UserError, raised
from largebatch._registry import Entry, this_folder_last
from largebatch.models.config import OPTIONS, ModelConfig
from largebatch.models.init import initialize
from largebatch.models.registry import models
from largebatch.models.trial import check_parameters, image_trial
from largebatch.models.weights import load_weights
from largebatch.nn import NormConfig, apply_norm, fix_classifier, fuse

Trial = Callable[[nn.Module, bool], None]
"""Tries a model before any work, in evaluation alone or (True) in training too; see `trial`."""


def build_model(
    config: ModelConfig,
    norm: NormConfig,
    offers: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
    seed: int | None = None,
    trial: Trial | None = None,
    complete: Callable[[nn.Module], nn.Module] | None = None,
) -> nn.Module:
    """Build the model that ``config`` names, with the norms that ``norm`` asks for.

    Args:
        config: the ``model`` section; ``compile`` is left to the caller.
        norm: the ``norm`` section.
        offers: the data's values that models may take by the names of their arguments:
            ``num_classes`` (overridden by ``config.num_classes``) and ``image_shape`` of images,
            ``vocabulary`` and ``context`` of text.
        dtype: type of the parameters. Values are drawn in torch's default type, so a float64 model
            starts from the values of the float32 model.
        seed: draw the weights from this seed and leave torch's generator as it was; None draws
            from torch's generator.
        trial: function that tries users' models, and models that take their shapes from a first
            forward pass. None: try them on blank images, if the data are images.
        complete: returns the model with the task's additions, such as a head.

    Raises:
        UserError: the model does not exist, does not fit the images, or lacks an option that is
            set; or the weights to start from do not fit.
    """
    config.check()
    entry, theirs = models.entry(config.name), models.imports(config.name)
    searching = this_folder_last if theirs else nullcontext
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        if config.num_classes is not None:
            offers = {**offers, "num_classes": config.num_classes}
        if trial is None:
            trial = image_trial(config.name, offers)
        with searching():
            model = _construct(entry, config, offers)
            if any(map(is_lazy, model.parameters())):
                trial(model, False)  # which draws their values, from the seed
        check_parameters(model, config.name)
        if config.classifier != "learned":
            if "num_classes" not in offers:
                raise UserError(f"model.classifier={config.classifier}: the data have no classes")
            model = fix_classifier(model, config.classifier)
        if complete is not None:
            model = complete(model)
        initialize(model, config.init)
    if theirs:
        with searching():
            trial(model, True)
    model = fuse(apply_norm(model, norm))
    if config.init_from is not None:
        load_weights(model, config.init_from)
    model = model.to(dtype)
    return model.to(memory_format=torch.channels_last) if config.channels_last else model


def model_of(name: str, keys: Mapping[str, Any], offers: Mapping[str, Any]) -> nn.Module:
    """Build a model by its name and keys of section ``model``, with its original norms.

    Raises:
        UserError: there is no such key; see :func:`build_model`.
    """
    known = [each.name for each in fields(ModelConfig)]
    for key in keys:
        if key not in known:
            raise UserError(f"model.{key}: no such key; model has {', '.join(known)}")
    if "vocabulary" in offers and "memory" in signature_of(models.entry(name).factory):
        offers = {**offers, "streams": 1}
    return build_model(ModelConfig(name, **keys), NormConfig(), offers)


def signature_of(factory: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Return the arguments of a factory by name; none for a C callable without a signature."""
    try:
        return inspect.signature(factory).parameters
    except ValueError:
        return {}


def _check_text(name: str, takes: Mapping[str, Any], offers: Mapping[str, Any]) -> None:
    """Refuse a model of ours that is not for text, or not for the way in which it is read."""

    def having(key: str) -> str:
        return ", ".join(each.name for each in models if key in signature_of(each.factory))

    others = "or package.module:callable"
    if "vocabulary" not in takes:
        raise UserError(
            f"model.name={name}: takes no text, which the data are; choose from"
            f" {having('vocabulary')} {others}"
        )
    if "streams" in offers and "memory" not in takes:
        raise UserError(
            f"data.streams={offers['streams']}: model.name={name} has no memory; choose from"
            f" {having('memory')} {others}, or leave data.streams out"
        )
    if "streams" not in offers and "memory" in takes:
        raise UserError(
            f"model.name={name}: its memory is of streams; set data.streams to batch.size"
        )


def _construct(entry: Entry[Any, Any], config: ModelConfig, offers: Mapping[str, Any]) -> nn.Module:
    """Call the factory with what its signature names, and refuse options that it does not."""
    if inspect.isclass(entry.factory) and not issubclass(entry.factory, nn.Module):
        raise UserError(f"model.name={entry.name}: a class that is no torch.nn.Module")
    parameters = signature_of(entry.factory)
    if "vocabulary" in offers and entry.name in models:
        _check_text(entry.name, parameters, offers)
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    given = {
        key: value
        for key, value in offers.items()
        if key in parameters or (anything and key == "num_classes")
    }
    for key, unset in OPTIONS.items():
        value = getattr(config, key)
        if value == unset:
            continue
        if key not in parameters:
            raise UserError(f"model.{key}={value}: model.name={entry.name} has no such option")
        given[key] = value
    try:
        inspect.Signature(list(parameters.values())).bind(**given)
    except TypeError as error:
        what = ", ".join(given) or "nothing"
        raise UserError(f"model.name={entry.name}: cannot be called with {what}: {error}") from None
    try:
        model = entry.factory(**given)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        if not models.imports(entry.name):
            raise
        raise UserError(f"model.name={entry.name}: to make it raised {raised(error)}") from error
    if not isinstance(model, nn.Module):
        raise UserError(
            f"model.name={entry.name}: returned a {type(model).__name__}, not a torch.nn.Module"
        )
    return model
