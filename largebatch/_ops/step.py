"""Shared code of the references of ``sgd_``, ``lars_`` and ``lamb_``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from largebatch._ops.dtypes import accumulate_dtype

_SUPPORTED = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def scalar(tensor: Tensor | None) -> Tensor | None:
    """Return a tensor of one number as a 0-d one."""
    if tensor is not None and tensor.dtype not in (torch.float32, torch.float64):
        raise ValueError("a factor or found_inf must hold one float32 or float64")
    return None if tensor is None else tensor.reshape(())


def _check_lists(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    moments: Sequence[Sequence[Tensor]],
    masters: Sequence[Tensor],
) -> None:
    """Refuse what the kernels refuse, before anything has changed."""
    lists = [grads, *moments, *([masters] if masters else [])]
    if any(len(each) != len(params) for each in lists):
        raise ValueError(f"{len(params)} parameters, but {[*map(len, lists)]} tensors beside them")
    for index, param in enumerate(params):
        beside = [each[index] for each in (grads, *moments)]
        beside += [each[index] for each in (masters,) if each and each[index].numel() > 0]
        if any(tensor.shape != param.shape for tensor in beside):
            raise ValueError(f"the tensors that go with parameter {index} differ in shape")
        for tensor in (param, *beside):
            if tensor.dtype not in _SUPPORTED or tensor.layout != torch.strided:
                raise ValueError(
                    f"parameter {index} or what goes with it: dense float32, float64, float16 or "
                    f"bfloat16 alone, not {tensor.dtype}, {tensor.layout}"
                )


class StepCall:
    """The tensor lists of a call, widened one by one; a skipped step changes nothing."""

    def __init__(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        moments: Sequence[Sequence[Tensor]],
        masters: Sequence[Tensor],
        grad_factor: Tensor | None,
        found_inf: Tensor | None,
        maximize: bool,
    ) -> None:
        _check_lists(params, grads, moments, masters)
        self.params, self.grads, self.masters = params, grads, masters
        self.grad_factor, self.found_inf = scalar(grad_factor), scalar(found_inf)
        self.sign = -1.0 if maximize else 1.0

    def weight(self, index: int) -> Tensor:
        """Return the parameter, from its master if there is one."""
        param = self.params[index]
        if self.masters and self.masters[index].numel() > 0:
            return self.masters[index]
        return param.to(accumulate_dtype(param.dtype))

    def grad(self, index: int) -> Tensor:
        """Return the gradient times its factor."""
        grad = self.sign * self.grads[index].to(accumulate_dtype(self.grads[index].dtype))
        return grad if self.grad_factor is None else grad * self.grad_factor.to(grad.dtype)

    def keep(self, new: Tensor, old: Tensor) -> Tensor:
        """Return ``new``, or ``old`` where the step is skipped."""
        return new if self.found_inf is None else torch.where(self.found_inf != 0, old, new)

    def store(self, index: int, new: Tensor, old: Tensor) -> None:
        """Write the parameter, and its master."""
        param, new = self.params[index], new.to(old.dtype)
        if self.masters and self.masters[index].numel() > 0:
            self.masters[index].copy_(self.keep(new, old))
        param.copy_(self.keep(new.to(param.dtype), param))
