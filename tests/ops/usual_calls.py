"""Calls of the operators that should be accepted, drawn at random; the fuzzer spoils them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from largebatch import _ops

EPS = 1e-2  # of norms: without, a channel of one value would leave nothing but roundings
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
Choice = TypeVar("Choice")


class Draw:
    """Random numbers, tensors and layouts; `said` collects what was done to a call."""

    def __init__(self, numbers: random.Random) -> None:
        self.numbers = numbers
        self.generator = torch.Generator().manual_seed(numbers.getrandbits(63))
        self.said: list[str] = []

    def below(self, end: int) -> int:
        return self.numbers.randrange(end)

    def flag(self) -> bool:
        return self.below(2) == 0

    def choice(self, values: Sequence[Choice]) -> Choice:
        return values[self.below(len(values))]

    def tensor(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        values = torch.randn(tuple(shape), generator=self.generator, dtype=torch.float64)
        return (values if dtype.is_floating_point else values * 20).to(dtype)

    def laid_out(self, old: Tensor) -> Tensor:
        """Return a tensor in another layout, or as a view into more memory."""
        layout = self.below(5)
        if layout == 0 and old.dim() >= 2:
            return old.transpose(0, 1).contiguous().transpose(0, 1)
        if layout == 1 and old.dim() >= 3:
            return old.movedim(1, -1).contiguous().movedim(-1, 1)
        if layout == 2 and old.dim() >= 1:
            return torch.stack([old, old], -1)[..., 0]
        if layout == 3:
            memory = torch.cat([old.reshape(-1)[:0], old.new_zeros(1), old.reshape(-1)])
            return memory[1:].view(old.shape)
        return old

    def special(self, old: Tensor) -> Tensor:
        """Put zeros, infinities, NaN or the ends of the range among a tensor's values."""
        new = old.clone()
        if not new.dtype.is_floating_point or not new.numel():
            return new
        end = torch.finfo(new.dtype)
        value = self.choice([0.0, end.max / 2, end.tiny, float("inf"), float("nan")])
        flat = new.reshape(-1)
        flat[self.below(new.numel()) :] = value
        return flat.view(old.shape)

    def shape(self) -> tuple[int, ...]:
        if self.below(12) == 0:
            return (self.choice([16383, 16385, 40000]),)
        return tuple(self.choice([0, 1, 2, 3, 7, 20]) for _ in range(self.below(4)))

    def scalar(self) -> Tensor | None:
        value = self.choice([None, 0.25, 1.0])
        return None if value is None else torch.tensor(value, dtype=self.choice(DTYPES[:2]))

    def found_inf(self) -> Tensor | None:
        value = self.choice([None, 0.0, 0.0, 1.0])
        return None if value is None else torch.tensor(value)


def _lists(draw: Draw, moments: int) -> list[list[Tensor]]:
    """Return parameters, gradients, moments and masters."""
    shapes = [draw.shape() for _ in range(draw.choice([0, 1, 1, 2, 3, 5]))]
    types = [draw.choice(DTYPES) for _ in shapes]
    wide = [_ops.accumulate_dtype(dtype) for dtype in types]
    low = draw.below(3) == 0
    kept = [torch.bfloat16 if low and dtype == torch.float32 else dtype for dtype in wide]

    def some(dtypes: Sequence[torch.dtype]) -> list[Tensor]:
        each = [draw.tensor(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
        return [draw.laid_out(tensor) for tensor in each] if draw.below(3) == 0 else each

    params, grads = some(types), some(types)
    firsts = some(kept) if moments > 0 else []
    seconds = [tensor.square() for tensor in some(kept)] if moments > 1 else []
    masters: list[Tensor] = []
    if draw.flag():
        masters = [
            param.float() if dtype != type_ and draw.below(4) else torch.empty(0)
            for param, dtype, type_ in zip(params, wide, types, strict=True)
        ]
    return [params, grads, firsts, *([seconds] if moments > 1 else []), masters]


def _factors(draw: Draw) -> dict[str, Any]:
    return {"grad_factor": draw.scalar(), "found_inf": draw.found_inf()}


def _tables(draw: Draw, count: int) -> tuple[Tensor, Tensor]:
    rows = [[0.1, draw.choice([0.0, 0.01]), float(draw.below(2))] for _ in range(count)]
    settings = torch.tensor(rows, dtype=torch.float64).view(count, 3)
    return torch.rand(count, 3, generator=draw.generator, dtype=torch.float64), settings


def sgd_(draw: Draw) -> list[Any]:
    momentum = draw.choice([0.0, 0.9])
    lists = _lists(draw, int(momentum != 0))
    numbers = [0.1, momentum, draw.choice([0.0, 0.9]), draw.choice([0.0, 0.01])]
    flags = [draw.flag() for _ in range(4)]
    return [*lists, *_factors(draw).values(), *numbers, *flags, draw.choice([1.0, 0.5])]


def lars_(draw: Draw) -> list[Any]:
    momentum = draw.choice([0.0, 0.9])
    lists = _lists(draw, int(momentum != 0))
    options = [momentum, 0.001, draw.choice([0.0, 1e-9]), *[draw.flag() for _ in range(7)]]
    tables = _tables(draw, len(lists[0]))
    return [*lists, *tables, draw.scalar(), *_factors(draw).values(), *options, draw.below(3)]


def lamb_(draw: Draw) -> list[Any]:
    lists = _lists(draw, 2)
    steps = [torch.tensor(float(draw.below(9))) for _ in lists[0]]
    numbers = [0.9, 0.99, 1e-6, draw.below(3), draw.flag(), draw.flag(), 0.0, draw.choice([2.0, 9])]
    tables = _tables(draw, len(lists[0]))
    scalars = [draw.scalar(), *_factors(draw).values()]
    return [*lists, steps, *tables, *scalars, *numbers, draw.below(3)]


def global_norm(draw: Draw) -> list[Any]:
    return [_lists(draw, 0)[0] or [torch.ones(3)]]


def clip_factor(draw: Draw) -> list[Any]:
    return [*global_norm(draw), draw.choice([0.1, 1e9]), 1e-6, draw.scalar()]


def _x(draw: Draw) -> Tensor:
    tail = tuple(draw.choice([1, 2, 3, 9]) for _ in range(draw.below(4)))
    shape = (draw.choice([1, 2, 5, 8]), draw.choice([1, 3, 17, 70]), *tail)
    return draw.laid_out(draw.tensor(shape, draw.choice(DTYPES)))


def _row(draw: Draw, x: Tensor) -> Tensor | None:
    return draw.tensor(x.shape[1:2], _ops.accumulate_dtype(x.dtype)) if draw.flag() else None


def _like(draw: Draw, x: Tensor) -> Tensor:
    return draw.laid_out(draw.tensor(x.shape, x.dtype))


def ghost_norm(draw: Draw) -> list[Any]:
    x = _x(draw)
    size = 1 + draw.below(len(x))
    full = draw.below(len(x) // size + 1)
    residual = _like(draw, x) if draw.flag() else None
    options = [draw.below(3), draw.choice([1, 2, 10]), size, full, EPS, draw.flag()]
    return [x, _row(draw, x), _row(draw, x), residual, *options]


def ghost_norm_backward(draw: Draw) -> list[Any]:
    x, weight, bias, residual, *options, relu = ghost_norm(draw)
    reference = _ops.reference_ghost_norm
    _, statistics, mask = reference(x, weight, bias, residual, *options, relu)
    return [_like(draw, x), x, weight, statistics, mask, *options, draw.flag()]


def norm_moments(draw: Draw) -> list[Any]:
    x = _x(draw)
    return [x, _row(draw, x)]


def norm_apply(draw: Draw) -> list[Any]:
    x = _x(draw)
    table = draw.tensor((3, x.shape[1]), _ops.accumulate_dtype(x.dtype))
    return [x, table, _like(draw, x) if draw.flag() else None, draw.flag()]


def norm_gradient_sums(draw: Draw) -> list[Any]:
    x, policy = _x(draw), draw.below(3)
    _, statistics, mask = _ops.reference_ghost_norm(
        x, None, None, None, policy, 2, len(x), 1, EPS, draw.flag()
    )
    return [_like(draw, x), x, mask, statistics[:, 0], policy]


def norm_gradient(draw: Draw) -> list[Any]:
    grad, x, mask, _, policy = norm_gradient_sums(draw)
    table = draw.tensor((6, x.shape[1]), _ops.accumulate_dtype(x.dtype))
    return [grad, x, mask, table, policy, draw.flag()]


def hadamard(draw: Draw) -> list[Any]:
    rows = [draw.choice([0, 1, 2, 7]) for _ in range(draw.below(3))]
    x = draw.tensor((*rows, draw.choice([1, 3, 8, 65, 1025])), draw.choice(DTYPES))
    return [draw.laid_out(x), draw.choice([1, 2, 5, 64, 100])]


def sum_shards(draw: Draw) -> list[Any]:
    types = (*DTYPES, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)
    dtype, shape = draw.choice(types), draw.shape()
    shards = [draw.tensor(shape, dtype) for _ in range(1 + draw.below(4))]
    narrow = DTYPES[2:] if dtype == torch.float32 and draw.flag() else (dtype,)
    out = draw.tensor(shape, draw.choice(narrow))
    if draw.below(4) == 0 and out.dtype == dtype:
        out = shards[-1]
    return [shards, out, draw.choice([1, 2, 3, 448]), draw.flag()]


USUAL: dict[str, Callable[[Draw], list[Any]]] = {
    call.__name__: call
    for call in (
        sgd_, lars_, lamb_, global_norm, clip_factor, ghost_norm, ghost_norm_backward,
        norm_moments, norm_apply, norm_gradient_sums, norm_gradient, hadamard, sum_shards,
    )
}  # fmt: skip


def from_schema(draw: Draw, kind: str) -> Any:
    """Return an argument of a type: all that is known of an operator that is not in `USUAL`."""
    if kind == "int":
        return draw.choice([0, 1, 2, 3])
    if kind == "float":
        return draw.choice([0.0, 0.1, 0.9])
    if kind == "bool":
        return draw.flag()
    if kind == "Optional[Tensor]" and draw.flag():
        return None
    if kind == "List[Tensor]":
        return [draw.tensor((4, 3)), draw.tensor((5,))]
    if kind in ("Tensor", "Optional[Tensor]"):
        return draw.tensor((4, 3))
    raise TypeError(f"the fuzzer knows no {kind}; teach it")


def usual_call(draw: Draw, schema: torch.FunctionSchema) -> dict[str, Any]:
    """Return arguments by their names."""
    name = schema.name.partition("::")[2]
    if name in USUAL:
        values = USUAL[name](draw)
        return dict(zip([a.name for a in schema.arguments], values, strict=True))
    return {a.name: from_schema(draw, str(a.type)) for a in schema.arguments}
