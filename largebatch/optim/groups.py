"""Parameter groups: which parameters decay."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from largebatch._errors import UserError
from largebatch.nn import find_classifier

NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
    nn.RMSNorm,
)


def param_groups(
    model: nn.Module,
    weight_decay: float,
    decay_norm_and_bias: bool = False,
    adapt_norm_and_bias: bool | None = None,
    lr_correction: bool = False,
) -> list[dict[str, Any]]:
    """Return optimizer groups in which biases and the parameters of norms have no weight decay.

    A parameter has no decay if it has at most one dimension or belongs to a norm. Decay there
    changes what the network can express and does not regularize (Goyal et al. 2017, 5.1; Nado et
    al. 2021).

    Args:
        model: its parameters that require gradients are grouped, each once.
        weight_decay: weight decay of the group ``decay``.
        decay_norm_and_bias: decay all parameters, biases and norms too.
        adapt_norm_and_bias: whether LARS and LAMB use a trust ratio for the group without decay.
            None: the optimizer's ``exclude`` decides.
        lr_correction: imitate the decay, by SGD's ``imitated_decay``, on the weights of all
            convolutions and linear layers but the classifier. A norm must follow each of these
            layers directly. This is not checked (pre-activation networks, for one, are not of this
            form).

    Returns:
        Up to three groups with the keys ``name``, ``params`` (pairs of name and parameter) and
        ``weight_decay``. One group if all parameters are treated alike.

    Raises:
        UserError: ``lr_correction`` for a model without norms.
    """
    named = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    same_decay = decay_norm_and_bias or weight_decay == 0.0
    if same_decay and not lr_correction and adapt_norm_and_bias is not False:
        return [{"name": "all", "params": named, "weight_decay": weight_decay}]
    of_norms = {
        id(param)
        for module in model.modules()
        if isinstance(module, NORMS)
        for param in module.parameters(recurse=False)
    }
    decay = [(n, p) for n, p in named if p.ndim > 1 and id(p) not in of_norms]
    rest = [(n, p) for n, p in named if p.ndim <= 1 or id(p) in of_norms]
    groups: list[dict[str, Any]] = [
        {"name": "decay", "params": decay, "weight_decay": weight_decay},
        {"name": "no_decay", "params": rest, "weight_decay": weight_decay if same_decay else 0.0},
    ]
    if lr_correction:
        invariant = _scale_invariant(model)
        corrected = [(n, p) for n, p in decay if id(p) in invariant]
        groups[0]["params"] = [(n, p) for n, p in decay if id(p) not in invariant]
        groups.append(
            {
                "name": "lr_correction",
                "params": corrected,
                "weight_decay": 0.0,
                "imitated_decay": weight_decay,
            }
        )
    if adapt_norm_and_bias is not None:
        groups[1]["layer_adaptation"] = adapt_norm_and_bias
    return [group for group in groups if group["params"]]


def _scale_invariant(model: nn.Module) -> set[int]:
    """Return the ids of the weights whose size a norm after them takes away."""
    if not any(isinstance(module, NORMS) for module in model.modules()):
        raise UserError("optim.lr_correction=true: no norm of the model takes its weights' size")
    classifier = find_classifier(model)
    return {
        id(layer.weight)
        for name, layer in model.named_modules()
        if isinstance(layer, (nn.Linear, _ConvNd)) and name != classifier
    }


def describe_groups(optimizer: torch.optim.Optimizer) -> list[str]:
    """Return one line per group: name, number of tensors and of parameters, weight decay."""
    lines = []
    for index, group in enumerate(optimizer.param_groups):
        count = sum(param.numel() for param in group["params"])
        imitated = group.get("imitated_decay", 0.0)
        lines.append(
            f"{group.get('name', index)}: {len(group['params'])} tensors, {count:,} parameters, "
            f"weight decay {imitated or group.get('weight_decay', 0.0):g}"
            + (", imitated by the rate" if imitated else "")
        )
    return lines
