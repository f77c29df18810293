"""Classifiers whose weights are not learned: Hadamard and random orthonormal.

Hoffer, Hubara, Soudry, "Fix your classifier: the marginal value of training the last weight
layer", 2018.
"""

from __future__ import annotations

import math
from typing import Literal, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from largebatch._errors import UserError
from largebatch._ops import accumulate_dtype, hadamard
from largebatch.nn.leaf import Proxy, recorded


class FixedClassifier(nn.Module):
    """Logits ``scale`` q_c . x / |x| + b_c with fixed vectors q_c; scale and biases are learned.

    ``hadamard``: q_c is row c of a Hadamard matrix (Sylvester's, entries +-1), cut to
    ``in_features`` columns. The matrix's size is the next power of two from ``in_features``. No
    matrix is stored: a fast Walsh-Hadamard transform takes O(in_features + n log n) additions a
    sample, with n the next power of two from ``num_classes``. The scale starts at 1 /
    sqrt(num_classes). The biases start uniformly within plus and minus this value.

    ``orthonormal``: the q_c are random and orthonormal, and are kept in a buffer. With more classes
    than features, the columns are orthonormal instead. The scale starts at 10, the biases at 0.

    Starting values are those of the authors' code, except the sign of the scale, which is negative
    there.

    Args:
        in_features: last dimension of the input (..., in_features).
        num_classes: number of logits.
        kind: ``hadamard`` or ``orthonormal``.
        bias: learn a bias per class.

    Raises:
        ValueError: ``hadamard`` with more classes than the next power of two from ``in_features``:
            some classes would share a row.
    """

    weight: Tensor | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        kind: Literal["hadamard", "orthonormal"] = "hadamard",
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if kind not in ("hadamard", "orthonormal"):
            raise ValueError(f"kind={kind!r}: choose from 'hadamard', 'orthonormal'")
        rows = 2 ** max(in_features - 1, 0).bit_length()
        if kind == "hadamard" and num_classes > rows:
            raise ValueError(
                f"{in_features} features tell at most {rows} classes apart by a Hadamard matrix, "
                f"not {num_classes}; take kind='orthonormal'"
            )
        self.in_features, self.num_classes, self.kind = in_features, num_classes, kind
        bound = 1.0 / math.sqrt(num_classes)
        start = bound if kind == "hadamard" else 10.0
        self.scale = nn.Parameter(torch.full((), start, device=device, dtype=dtype))
        self.bias: nn.Parameter | None = None
        if bias:
            self.bias = nn.Parameter(torch.zeros(num_classes, device=device, dtype=dtype))
        self.register_buffer("weight", None)
        if kind == "orthonormal":
            self.weight = torch.empty(num_classes, in_features, device=device, dtype=dtype)
            nn.init.orthogonal_(self.weight)
        elif self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (..., num_classes) of ``x`` (..., in_features), at least float32."""
        if isinstance(x, Proxy):
            return recorded(self, x)
        dtype = accumulate_dtype(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            x = F.normalize(x.to(dtype), dim=-1)
            if self.weight is None:
                logits = hadamard(x, self.num_classes)
            else:
                logits = F.linear(x, self.weight.to(dtype))
            logits = logits * self.scale.to(dtype)
            return logits if self.bias is None else logits + self.bias.to(dtype)

    def __prepare_scriptable__(self) -> NoReturn:
        raise UserError(
            "torch.jit.script cannot compile a FixedClassifier; take torch.export or jit.trace"
        )

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.num_classes}, kind={self.kind!r}"


def find_classifier(model: nn.Module) -> str | None:
    """Return the name of a model's classifier: its last linear layer, or a fixed one."""
    kinds = (nn.Linear, FixedClassifier)
    names = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    return names[-1] if names else None


def fix_classifier(model: nn.Module, kind: Literal["hadamard", "orthonormal"]) -> nn.Module:
    """Replace the last linear layer of ``model`` by a ``FixedClassifier``, in place.

    Returns:
        ``model``, or the classifier if ``model`` is itself a linear layer.

    Raises:
        UserError: there is no linear layer, or it does not fit the kind.
    """
    name = find_classifier(model)
    old = None if name is None else model.get_submodule(name)
    if not isinstance(old, nn.Linear):
        raise UserError(f"model.classifier={kind}: the model has no linear layer to exchange")
    try:
        new = FixedClassifier(
            old.in_features,
            old.out_features,
            kind,
            old.bias is not None,
            old.weight.device,
            old.weight.dtype,
        )
    except ValueError as error:
        raise UserError(f"model.classifier={kind}: {error}") from None
    if not name:
        return new
    model.set_submodule(name, new)
    return model
