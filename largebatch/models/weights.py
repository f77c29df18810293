"""Start a model from the weights of another run."""

from __future__ import annotations

import os
import warnings

from torch import Tensor, nn

from largebatch._errors import UserError
from largebatch.nn import find_classifier


def load_weights(model: nn.Module, path: str) -> list[str]:
    """Load ``path`` into ``model``; names and shapes of all tensors must match.

    There are two exceptions. The classifier (``find_classifier``) may have another number of
    classes in the file; it then keeps its fresh weights, with a warning. The norms'
    ``num_batches_tracked`` may be missing, as in the oldest torchvision checkpoints.

    Args:
        model: changed in place.
        path: a .safetensors file with the model's own names; for torchvision's ResNets these are
            torchvision's. A leading ``module.`` or ``_orig_mod.`` is removed.

    Returns:
        The names of the tensors that keep their fresh values.

    Raises:
        UserError: the file cannot be read, or does not fit; the message names the first tensors.
    """
    found = _read(path)
    expected = model.state_dict()
    fresh = _classifier_of_other_data(model, expected, found)
    fresh += [n for n in expected if n not in found and n.endswith("num_batches_tracked")]
    wrong = [f"{name} is missing" for name in expected if name not in found and name not in fresh]
    wrong += [f"{name} is not in the model" for name in found if name not in expected]
    wrong += [
        f"{name} has shape {tuple(found[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and name not in fresh and found[name].shape != tensor.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(
            f"model.init_from={path}: does not fit the model: {'; '.join(wrong[:3])}{more}"
        )
    model.load_state_dict({n: expected[n] if n in fresh else found[n] for n in expected})
    return fresh


def _read(path: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not os.path.isfile(path):
        raise UserError(f"model.init_from={path}: no such file")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"model.init_from={path}: not a readable .safetensors file: {error}"
        ) from None
    for prefix in ("module.", "_orig_mod."):
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _classifier_of_other_data(
    model: nn.Module, expected: dict[str, Tensor], found: dict[str, Tensor]
) -> list[str]:
    """Return the names of the classifier's tensors if only their first sizes differ."""
    last = find_classifier(model)
    names = [n for n in expected if n in (f"{last}.weight", f"{last}.bias")]
    pairs = [(expected[n].shape, found[n].shape) for n in names if n in found]
    if len(pairs) != len(names) or any(
        mine[1:] != theirs[1:] or len(mine) != len(theirs) or mine == theirs
        for mine, theirs in pairs
    ):
        return []
    if names:
        mine, theirs = pairs[0]
        warnings.warn(
            f"model.init_from: the file has {theirs[0]} classes, the model {mine[0]}: the "
            f"classifier {last} starts fresh",
            stacklevel=3,
        )
    return names
