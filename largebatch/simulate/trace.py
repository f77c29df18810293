"""Trace one training step of a model: FLOPs and bytes of every operator.

A forward and a backward pass run on the meta device, which has shapes and no values, under a mode
that sees every operator that eager PyTorch would launch. FLOPs are counted by torch's own counter
(2 for a multiplication with its addition). Bytes are those of the tensors that an operator reads
and writes once. Hooks record after which operator each parameter's gradient is complete, and what
autograd keeps for the backward pass. All numbers are linear in the batch, so two small batches give
the numbers of every other batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from largebatch._errors import UserError

Build = Callable[[], nn.Module]


@dataclass(frozen=True)
class Operator:
    """One operator of a step: FLOPs a sample, and bytes = ``fixed_bytes`` + samples * ``bytes``."""

    name: str
    flops: float
    bytes: float
    fixed_bytes: float


@dataclass(frozen=True)
class Gradient:
    """A parameter's gradient: number of elements, and of operators launched to complete it."""

    name: str
    elements: int
    after: int


@dataclass(frozen=True)
class Trace:
    """One step of a model.

    Args:
        operators: in the order of launch, forward first.
        forward: number of operators in the forward pass.
        gradients: gradients of all parameters in the order of exchange: last registered first.
        kept: bytes that autograd keeps from forward to backward, for each sample.
        held: bytes of all parameters and buffers in float32.
    """

    operators: tuple[Operator, ...]
    forward: int
    gradients: tuple[Gradient, ...]
    kept: float
    held: float

    @property
    def elements(self) -> int:
        """Number of trained values in the model."""
        return sum(gradient.elements for gradient in self.gradients)

    def flops(self) -> float:
        """Return the FLOPs of a sample, forward and backward."""
        return sum(operator.flops for operator in self.operators)

    def bytes(self, batch: int) -> float:
        """Return the bytes that a step of ``batch`` samples reads and writes."""
        return sum(operator.fixed_bytes + batch * operator.bytes for operator in self.operators)


def trace(build: Build, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Trace:
    """Trace a step of an image classifier, or of a language model.

    Args:
        build: makes the model; called under ``torch.device("meta")``.
        shape: shape of a sample: (channels, height, width) of an image, (tokens,) of a window of
            text.
        dtype: type of activations and of the weights that operators read.

    Raises:
        UserError: the model cannot take such samples.
    """
    with torch.device("meta"):
        model = build().to("meta", dtype).train()
    try:
        few, many = (_run(model, n, shape, dtype) for n in (2, 4))
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        what = f"images of {'x'.join(map(str, shape))}"
        if len(shape) == 1:
            what = f"windows of {shape[0]} tokens"
        raise UserError(f"the model cannot be traced with {what}: {error}") from None
    assert [name for name, *_ in few.seen] == [name for name, *_ in many.seen]
    operators = tuple(
        Operator(name, flops / 2, (more - fewer) / 2, 2 * fewer - more)
        for (name, flops, fewer), (_, _, more) in zip(few.seen, many.seen, strict=True)
    )
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    gradients = tuple(
        Gradient(name, parameter.numel(), few.after.get(name, len(operators)))
        for name, parameter in reversed(named)
    )
    held = sum(4 * t.numel() for t in (*model.parameters(), *model.buffers()))
    return Trace(operators, few.forward, gradients, (many.kept - few.kept) / 2, held)


class _Watch(TorchDispatchMode):
    """Note the name, FLOPs and bytes of every operator; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, float, float]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not func.is_view:
            packet = func._overloadpacket
            count = flop_registry.get(packet)
            flops = count(*args, **kwargs, out_val=out) if count is not None else 0
            tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
            size = sum(t.numel() * t.element_size() for t in tensors)
            self.seen.append((str(packet), float(flops), float(size)))
        return out


class _FusedAttention(TorchFunctionMode):
    """Attention as one operator, as devices do it; the meta device would write out the scores."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (
            func is scaled_dot_product_attention
            and len(args) == 3
            and kwargs.get("attn_mask") is None
        ):
            drop, causal = kwargs.get("dropout_p", 0.0), kwargs.get("is_causal", False)
            return torch.ops.aten._scaled_dot_product_flash_attention(*args, drop, causal)[0]
        return func(*args, **kwargs)


@dataclass(frozen=True)
class _Run:
    """A step of one batch: its operators, how many are the forward's, when gradients are ready."""

    seen: list[tuple[str, float, float]]
    forward: int
    after: dict[str, int]
    kept: int


def _run(model: nn.Module, batch: int, shape: Sequence[int], dtype: torch.dtype) -> _Run:
    text = len(shape) == 1
    inputs = torch.empty(batch, *shape, device="meta", dtype=torch.long if text else dtype)
    targets = torch.empty(inputs.shape if text else batch, device="meta", dtype=torch.long)
    after: dict[str, int] = {}
    # By identity, since views share them; a reference keeps an address from being used again.
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage
        return tensor

    model.zero_grad()
    with _Watch() as watch:

        def ready(name: str) -> Callable[[Tensor], None]:
            return lambda parameter: after.__setitem__(name, len(watch.seen))

        hooks = [
            parameter.register_post_accumulate_grad_hook(ready(name))
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        ]
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept):
            with _FusedAttention():
                out = model(inputs)
            logits = out[0] if isinstance(out, tuple) else out  # of a model with a memory
            loss = nn.functional.cross_entropy(logits.float().flatten(0, -2), targets.flatten())
        forward = len(watch.seen)
        loss.backward()
    for hook in hooks:
        hook.remove()
    return _Run(watch.seen, forward, after, sum(s.nbytes() for s in storages.values()))
