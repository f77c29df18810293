"""Try a user's model on two blank images before any work; refuse it with a one-line error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from largebatch._errors import UserError, raised


def check_parameters(model: nn.Module, name: str) -> None:
    """Refuse a model without anything to train.

    Raises:
        UserError: the message names the model and the parameter or buffer.
    """
    parameters = list(model.parameters())
    if not any(parameter.requires_grad for parameter in parameters):
        has = f"{len(parameters)} parameters, all frozen" if parameters else "no parameters"
        raise UserError(f"model.name={name}: has {has}: there is nothing to train")
    meant = torch.get_default_device().type == "meta"  # as `largebatch plan` builds it
    for kind, tensors in (
        ("parameter", model.named_parameters()),
        ("buffer", model.named_buffers()),
    ):
        for tensor_name, tensor in tensors:
            where = f"model.name={name}: {kind} {tensor_name}"
            if tensor.is_meta and not meant:
                raise UserError(f"{where} is on the meta device: it has no values to start from")
            if kind == "parameter" and tensor.is_complex():
                raise UserError(f"{where} is complex: a run has real ones; torch.view_as_real")


def try_images(model: nn.Module, name: str, num_classes: int, image_shape: tuple[int, ...]) -> None:
    """Run two blank images through ``model`` in evaluation mode; the model is restored afterwards.

    Used for users' models, and for image sizes of later phases (f1, c1 and c3 are built for one
    size), so that an error is found before any work.

    Raises:
        UserError: the model cannot take (channels, height, width), or does not return (N,
            num_classes) logits.
    """
    with as_before(model), torch.no_grad():
        model.eval()
        _logits(model, name, num_classes, image_shape, "")


def try_training(
    model: nn.Module, name: str, num_classes: int, image_shape: tuple[int, ...]
) -> None:
    """Do the same forward and backward in training mode, where a model may return something else.

    Raises:
        UserError: as for :func:`try_images`, or the output depends on no trainable parameter.
    """
    with as_before(model), torch.enable_grad():
        logits = _logits(model, name, num_classes, image_shape, "in training ")
        if not logits.requires_grad:
            raise UserError(
                f"model.name={name}: its logits depend on no trainable parameter: forward detaches "
                "them, or runs under no_grad"
            )
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        try:
            torch.autograd.grad(logits.sum(), trainable, allow_unused=True)
        except Exception as error:
            raise UserError(
                f"model.name={name}: its backward pass raised {raised(error)}"
            ) from error


def _logits(
    model: nn.Module, name: str, num_classes: int, image_shape: tuple[int, ...], when: str
) -> Tensor:
    first = next(model.parameters(), torch.zeros(()))
    images = torch.zeros(2, *image_shape, dtype=first.dtype, device=first.device)
    try:
        out = model(images)
    except Exception as error:
        shape = "x".join(map(str, image_shape))
        raise UserError(
            f"model.name={name}: {when}cannot take images of {shape}: {raised(error)}"
        ) from error
    wanted = f"model.name={name}: must return logits of shape (N, {num_classes}) for N images, "
    if not isinstance(out, Tensor):
        raise UserError(
            f"{wanted}{when}returned a {type(out).__name__}; name a function that makes a model "
            "which returns the logits alone"
        )
    if out.shape != (2, num_classes):
        raise UserError(
            f"{wanted}{when}returned {tuple(out.shape)} for 2; model.num_classes sets the number"
        )
    if not out.is_floating_point():
        raise UserError(f"{wanted}{when}returned {out.dtype}, no floating-point numbers")
    if out.device != images.device:
        raise UserError(f"{wanted}{when}returned them on {out.device}, not on {images.device}")
    return out


def image_trial(name: str, offers: Mapping[str, Any]) -> Callable[[nn.Module, bool], None]:
    """Return a function that tries a model on blank images, of the form that ``offers`` give."""

    def trial(model: nn.Module, training: bool) -> None:
        if "image_shape" not in offers:
            return
        fit = (name, offers["num_classes"], offers["image_shape"])
        try_images(model, *fit)
        if training:
            try_training(model, *fit)

    return trial


@contextmanager
def as_before(model: nn.Module) -> Iterator[None]:
    """Restore training flags, buffers and torch's generator after a ``with`` block."""
    training = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers() if not is_lazy(buffer)]
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            for module, flag in training:
                module.training = flag
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
