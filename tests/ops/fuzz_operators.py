"""Random calls of operators, each from a seed of its own, beside the reference on copies.

    python tests/ops/fuzz_operators.py OPERATOR[,OPERATOR...] FIRST_SEED COUNT

Arguments are drawn from the operator's schema and, where `usual_calls.py` knows a call that should
be accepted, from that with an argument or two replaced by what nobody should pass. A call may be
refused; then nothing has changed. One that is accepted must leave what the reference leaves. The
process ends at the first fault with status 1; it may also crash or be killed by its timer, so
operator and seed are written before each call.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import resource
import signal
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from usual_calls import Draw, usual_call

from largebatch import _ops
from largebatch._ops.norm_layout import from_bits, in_layout

SECONDS = 20  # of the processor for one call, after which it counts as endless
MEMORY = 4 << 30  # bytes beyond those in use: more would be a mistake of ours
INTEGERS = (0, 1, -1, 2, 3, 7, 2**31, 2**32 + 1, 2**48, 2**62, 2**62 + 1, 2**63 - 1, -(2**63))
FLOATS = (0.0, -0.0, -1.0, 1e-300, 1e300, float("inf"), float("-inf"), float("nan"))
# Of the largest value: a few roundings, and sums of some hundred terms in another order.
TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 2e-4,
    torch.float16: 4e-3,
    torch.bfloat16: 3e-2,
}


def spoil_tensor(draw: Draw, old: Tensor, others: Sequence[Tensor], is_guarded: bool) -> Tensor:
    """Return what nobody should pass in the place of `old`, or what needs care."""
    shape, dtype = tuple(old.shape), old.dtype
    kinds = ["type", "shape", "empty", "scalar", "meta", "sparse", "expanded", "overlap", "part"]
    kinds += ["negative", "alias", "layout", "values", "complex", "quantized"]
    kinds += ["inference", "leaf", "child"] if is_guarded else []
    kinds += ["freed", "shrunk"] if len(draw.said) < 3 else []  # torch itself crashes on those
    kind = draw.choice(kinds)
    draw.said.append(kind)
    if old.device.type == "meta" or old.layout != torch.strided or old.is_quantized:
        return old
    if kind == "type":
        types = (*TOLERANCE, torch.int32, torch.uint8, torch.bool, torch.float8_e4m3fn)
        return old.to(draw.choice(types))
    if kind == "shape":
        change = draw.choice([(*shape, 1), (1, *shape), (*shape[:-1], 3), shape[::-1], (5,)])
        return draw.tensor(change, dtype)
    if kind == "empty":
        return old.new_empty(draw.choice([(0,), (0, 3), (3, 0)]))
    if kind == "scalar":
        return draw.tensor((), dtype)
    if kind == "meta":
        return old.to("meta")
    if kind == "sparse":
        return old.to_sparse() if old.dim() else old
    if kind in ("freed", "shrunk"):
        new = old.clone()
        size = new.untyped_storage().nbytes()
        new.untyped_storage().resize_(0 if kind == "freed" else size // 2)
        return new
    if kind == "expanded":
        return old.new_ones(()).expand(shape)
    if kind == "overlap":
        memory = old.new_ones(old.numel() + 1)
        return memory.as_strided(shape, [1] * len(shape)) if old.numel() else old
    if kind == "negative":
        return torch._neg_view(old) if dtype.is_floating_point else old
    if kind == "alias":
        return draw.choice(others)
    if kind == "part":
        other = draw.choice(others)
        if other.dtype not in TOLERANCE or other.layout != torch.strided or other.numel() < 2:
            return other
        return other.reshape(-1)[1:][: old.numel()]
    if kind == "layout":
        return draw.laid_out(old)
    if kind == "values":
        return draw.special(old)
    if kind == "complex":
        return old.to(torch.complex64).conj()
    if kind == "quantized":
        return torch.quantize_per_tensor(old.float(), 0.1, 0, torch.qint8)
    if kind == "inference":
        with torch.inference_mode():
            return old.clone()
    if not dtype.is_floating_point:
        return old
    leaf = old.clone().requires_grad_()
    return leaf if kind == "leaf" else leaf * 1


def spoil(draw: Draw, argument: Any, value: Any, others: list[Tensor], is_guarded: bool) -> Any:
    """Return another value for an argument of the schema."""
    kind = str(argument.type)
    draw.said.append(argument.name)
    if kind == "int":
        return draw.choice(INTEGERS)
    if kind == "float":
        return draw.choice(FLOATS)
    if kind == "bool":
        return not value
    others = others or [torch.zeros(3)]
    if kind == "List[Tensor]":
        form = draw.choice(["empty", "short", "long", "twice", "turned", *["entry"] * 7])
        draw.said.append(form)
        new = list(value)
        if form == "empty" or not new:
            return []
        if form == "short":
            return new[:-1]
        if form == "long":
            return [*new, draw.choice(others)]
        if form == "twice":
            return [*new[:-1], new[0]]
        if form == "turned":
            return new[::-1]
        place = draw.below(len(new))
        new[place] = spoil_tensor(draw, new[place], others, is_guarded)
        return new
    if kind == "Optional[Tensor]" and draw.below(4) == 0:
        return None if value is not None else draw.choice(others)
    return spoil_tensor(draw, torch.zeros(3) if value is None else value, others, is_guarded)


def tensors_of(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        values = values.values()
    if isinstance(values, (list, tuple)) or not isinstance(values, (int, float, type(None))):
        return [tensor for value in values for tensor in tensors_of(value)]
    return []


def is_whole(tensor: Tensor) -> bool:
    """Tell whether the storage of a tensor holds its elements: torch itself crashes where not."""
    if tensor.layout != torch.strided or tensor.device.type == "meta" or tensor.numel() == 0:
        return True
    reach = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    bytes_needed = (tensor.storage_offset() + reach) * tensor.element_size()
    return bytes_needed <= tensor.untyped_storage().nbytes()


class Copies:
    """Copies of tensors that share memory as the originals do."""

    def __init__(self) -> None:
        self.storages: dict[int, Any] = {}
        self.seen: dict[int, Tensor] = {}

    def of(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [self.of(each) for each in value]
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self.seen:
            self.seen[id(value)] = self._tensor(value)
        return self.seen[id(value)]

    def _tensor(self, old: Tensor) -> Tensor:
        if old.is_quantized:
            return torch.quantize_per_tensor(old.dequantize(), 0.1, 0, torch.qint8)
        plain = old.layout == torch.strided and not old.is_conj()
        if old.is_inference():
            with torch.inference_mode():
                return old.clone()
        if old.device.type == "meta" or not plain or old.is_neg() or not is_whole(old):
            return old.detach().clone() if is_whole(old) else old
        storage = old.untyped_storage()
        if storage.data_ptr() not in self.storages:
            self.storages[storage.data_ptr()] = storage.clone()
        new = old.detach().new_empty(0)
        memory = self.storages[storage.data_ptr()]
        new.set_(memory, old.storage_offset(), old.shape, old.stride())
        if old.requires_grad:
            new.requires_grad_()
        return new if old.is_leaf else new * 1


def same_bits(a: Tensor, b: Tensor) -> bool:
    if not is_whole(a) or a.device.type == "meta":
        return True
    a, b = (t.detach().to_dense() if t.layout != torch.strided else t.detach() for t in (a, b))
    if a.is_quantized:
        a, b = a.int_repr(), b.int_repr()
    a, b = (torch.empty(t.numel(), dtype=t.dtype).copy_(t.reshape(-1)) for t in (a, b))
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def difference(got: Tensor, want: Tensor, coarsest: float, is_extreme: bool) -> str:
    """Return how a result differs from the reference's, or ''.

    Values are of about 1; a sum over parameters of float32 is as wide as they are. With extreme
    numbers it is left open whether something on the way is beyond the range.
    """
    if got.shape != want.shape or got.dtype != want.dtype or got.device != want.device:
        return f"{got.shape} {got.dtype} {got.device} for {want.shape} {want.dtype} {want.device}"
    if got.device.type == "meta":
        return "nothing was computed"
    if got.layout != torch.strided or got.is_quantized:
        return "" if same_bits(got, want) else "other values"
    if got.dtype not in TOLERANCE:
        return "" if torch.equal(got, want) else "other whole numbers"
    a, b = got.detach().double(), want.detach().double()
    both = a.isfinite() & b.isfinite()
    if not is_extreme and not torch.equal(a.isnan(), b.isnan()):
        return "NaN elsewhere"
    if not is_extreme and not torch.equal(a.isinf(), b.isinf()):
        return "infinity elsewhere"
    a, b = a[both], b[both]
    scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
    error = (a - b).abs().max().item() if b.numel() else 0.0
    bound = max(TOLERANCE[got.dtype], coarsest) * scale
    return "" if error <= bound else f"off by {error:.3g} where values reach {scale:.3g}"


def describe(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(describe, value)) + "]"
    if not isinstance(value, Tensor):
        return repr(value)
    kind = str(value.dtype).removeprefix("torch.")
    strides = list(value.stride()) if value.layout == torch.strided else value.layout
    notes = [value.device.type] if value.device.type != "cpu" else []
    notes += [name for name in ("is_inference", "is_neg") if getattr(value, name)()]
    notes += ["requires_grad"] if value.requires_grad else []
    return " ".join([f"{kind}{list(value.shape)}/{strides}", *notes])


def call(name: str, seed: int) -> str:
    """Make the call of a seed; return 'refused', 'same', or what is wrong with it."""
    draw = Draw(random.Random(f"{name} {seed}"))
    operator, overload = _ops.OPERATORS[name], getattr(torch.ops.largebatch, name).default
    schema = overload._schema
    values: dict[str, Any] = usual_call(draw, schema)
    for _ in range(draw.choice([0, 1, 1, 2])):
        if {"freed", "shrunk"} & {*draw.said}:
            break
        argument = draw.choice(schema.arguments)
        others = tensors_of(values)
        values[argument.name] = spoil(
            draw, argument, values[argument.name], others, getattr(operator, "is_guarded", True)
        )
    copies = Copies()
    copied = {key: copies.of(value) for key, value in values.items()}
    text = f"{'+'.join(draw.said)}: " + ", ".join(f"{k}={describe(v)}" for k, v in values.items())
    whole = all(map(is_whole, tensors_of(values)))
    positional = [a.name for a in schema.arguments if not a.kwarg_only]
    options = [a.name for a in schema.arguments if a.kwarg_only]

    def run(function: Any, given: dict[str, Any]) -> Any:
        return function(*[given[n] for n in positional], **{n: given[n] for n in options})

    try:
        result = run(overload, values)
    except Exception as error:
        if not whole or any(t.is_neg() for t in tensors_of(values)):  # torch materialises those
            return "refused"
        for before, after in zip(tensors_of(copied), tensors_of(values), strict=True):
            if not same_bits(before, after):
                return f"refused after it had changed a tensor ({str(error)[:200]}) {text}"
        return "refused"
    if all(t.device.type == "meta" for t in tensors_of(values)):
        return "same"
    if not whole:
        return f"accepted a tensor whose storage is gone: {text}"
    try:
        expected = run(operator.reference, copied)
    except Exception as error:
        if "allocate memory" in str(error):
            return "refused"
        return f"accepted, but the reference says {str(error)[:200]!r}: {text}"
    if name in ("ghost_norm", "norm_apply") and values["relu"]:
        # What comes after the last bit of a row has no meaning.
        x = in_layout(values["x"])
        result, expected = ([*r[:-1], from_bits(r[-1], x)] for r in (result, expected))
    got, want = [*tensors_of(result), *tensors_of(values)], tensors_of(expected)
    narrow = any(t.dtype in TOLERANCE and t.dtype != torch.float64 for t in tensors_of(copied))
    is_extreme = "values" in draw.said or any(
        not math.isfinite(value) or abs(value) in (0, 1e300, 1e-300)
        for key, value in values.items()
        if key in draw.said and isinstance(value, float)
    )
    coarsest = TOLERANCE[torch.float32] if narrow else 0.0
    names = [f"result {i}" for i in range(len(tensors_of(result)))]
    names += [key for key, value in values.items() for _ in tensors_of(value)]
    for what, a, b in zip(names, got, [*want, *tensors_of(copied)], strict=True):
        wrong = difference(a, b, coarsest, is_extreme)
        if wrong:
            return f"{what}: {wrong}: {text}"
    return "same"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("operators")
    parser.add_argument("first", type=int)
    parser.add_argument("count", type=int)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(2)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    for name in given.operators.split(","):
        same = 0
        for seed in range(given.first, given.first + given.count):
            os.write(1, f"{name} {seed}\n".encode())
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            outcome = call(name, seed)
            if outcome not in ("same", "refused"):
                os.write(1, f"fault: {outcome}\n".encode())
                raise SystemExit(1)
            same += outcome == "same"
        os.write(1, f"{name} accepted {same}\n".encode())


if __name__ == "__main__":
    main()
