"""The steps of the batch norm operator, one by one, are the operator; each equals its reference."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from largebatch import _ops
from largebatch._ops import NormPolicy, norm_constant
from largebatch._ops.norm_layout import from_bits, in_layout

ops = torch.ops.largebatch
SHAPES = ((9, 5, 7, 3), (4, 130, 2), (40, 17), (3, 8, 20, 20), (600, 64), (1, 3, 4, 4))
LAYOUTS = ("contiguous", "channels_last", "gaps")
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
EPS = 1e-5


def laid_out(x: Tensor, layout: str) -> Tensor:
    if layout == "channels_last":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    return torch.stack((x, x), -1)[..., 0] if layout == "gaps" else x


def case(shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    wide = _ops.accumulate_dtype(dtype)

    def values(*sizes: int) -> Tensor:
        return torch.randn(sizes, dtype=torch.float64, generator=generator)

    x, residual, grad = (laid_out(values(*shape).to(dtype), layout) for _ in range(3))
    weight, bias = (values(shape[1]).to(wide) for _ in range(2))
    return {"x": x + 3, "residual": residual, "grad": grad, "weight": weight, "bias": bias}


def terms(call: dict[str, Tensor], statistics: Tensor, sums: Tensor, policy: int, top: int) -> Any:
    """Return r and the coefficients of ``norm_gradient``, from the formulas of math.h."""
    n = call["x"].numel() // call["x"].shape[1]
    c, k = norm_constant(NormPolicy(policy), n), min(top, n)
    spread = statistics[1]
    r = (spread + EPS).rsqrt() if policy == 0 else 1 / (c * spread + EPS)
    scale, zero = r * call["weight"], torch.zeros_like(r)
    constant, kth, share = -scale * sums[0] / n, zero, zero
    if policy == NormPolicy.L2:
        slope = -scale * r**2 * sums[1] / n
    else:
        sign = sums[-1]
        if policy == NormPolicy.TOP_K:
            kth, share = statistics[2], (k - sums[2]) / sums[3]
            sign = sums[4] + share * sums[5]
        slope = -scale * r * c * sums[1] / (k if policy == NormPolicy.TOP_K else n)
        constant = constant - slope * sign / n
    return r, torch.stack((statistics[0], scale, constant, slope, kth, share))


def close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    scale = 1 + float(expected.abs().max()) if expected.numel() else 1.0
    torch.testing.assert_close(found, expected, rtol=0, atol=scale * TOLERANCE[dtype])


def same_bits(found: Tensor, expected: Tensor, x: Tensor) -> None:
    """A coefficient's last digit may move a value over the ReLU's edge: few, if any."""
    assert found.shape == expected.shape
    if found.numel():
        x = in_layout(x)
        assert (from_bits(found, x) != from_bits(expected, x)).sum() <= 2


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_one_by_one_they_are_the_operator(shape: tuple[int, ...], layout: str) -> None:
    for dtype, policy, relu in itertools.product(TOLERANCE, NormPolicy, (False, True)):
        call, top = case(shape, layout, dtype), 3
        x, weight, bias, residual, grad = (
            call[name] for name in ("x", "weight", "bias", "residual", "grad")
        )
        options = (policy, top, shape[0], 1, EPS)
        y, statistics, mask = ops.ghost_norm(x, weight, bias, residual, *options, relu)
        dx, sums, dresidual = ops.ghost_norm_backward(
            grad, x, weight, statistics, mask, *options, True
        )
        statistics = statistics.squeeze(1)

        moments = ops.norm_moments(x, None)
        close(moments[0], statistics[0], dtype)
        if policy == NormPolicy.L2:
            close(moments[1], statistics[1], dtype)
        if policy == NormPolicy.L1:
            about = ops.norm_moments(x, statistics[0])
            assert torch.equal(about, statistics)
        own = ops.norm_gradient_sums(grad, x, mask, statistics, policy)
        r, coefficients = terms(call, statistics, own, policy, top)
        close(own[0], sums[1, 0], dtype)
        close(own[1] * r, sums[0, 0], dtype)
        table = torch.stack((statistics[0], coefficients[1], bias))
        found, bits = ops.norm_apply(x, table, residual, relu)
        close(found, y, dtype)
        assert found.stride() == y.stride()
        same_bits(bits, mask, x)
        found, kept = ops.norm_gradient(grad, x, mask, coefficients, policy, True)
        close(found, dx, dtype)
        close(kept, dresidual, dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_each_equals_its_reference(shape: tuple[int, ...], layout: str) -> None:
    for dtype, policy, relu in itertools.product(TOLERANCE, NormPolicy, (False, True)):
        call = case(shape, layout, dtype)
        x, residual, grad = call["x"], call["residual"], call["grad"]
        _, statistics, mask = ops.ghost_norm(
            x, None, None, residual, policy, 3, shape[0], 1, EPS, relu
        )
        statistics = statistics.squeeze(1)
        table = torch.stack((statistics[0], call["weight"], call["bias"]))
        coefficients = torch.stack((*table, call["bias"], statistics[-1], call["weight"].abs()))
        for name, arguments in (
            ("norm_moments", (x, None)),
            ("norm_moments", (x, call["bias"])),
            ("norm_apply", (x, table, residual, relu)),
            ("norm_apply", (x, table, None, relu)),
            ("norm_gradient_sums", (grad, x, mask, statistics, policy)),
            ("norm_gradient", (grad, x, mask, coefficients, policy, True)),
            ("norm_gradient", (grad, x, mask, coefficients, policy, False)),
        ):
            found = getattr(ops, name)(*arguments)
            expected = getattr(_ops, f"reference_{name}")(*arguments)
            found, expected = (t if isinstance(t, tuple) else (t,) for t in (found, expected))
            for one, other in zip(found, expected, strict=True):
                if one.dtype == torch.uint8:
                    same_bits(one, other, x)
                else:
                    close(one, other, dtype)


@pytest.mark.parametrize("policy", NormPolicy)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(policy: NormPolicy, layout: str) -> None:
    call = case((6, 3, 2, 2), layout, torch.float32)
    x, grad = call["x"], call["grad"]
    _, statistics, mask = ops.ghost_norm(x, None, None, None, policy, 2, 6, 1, EPS, True)
    statistics = statistics.squeeze(1)
    coefficients = torch.randn(6, 3)
    for name, arguments in (
        ("norm_moments", (x, None if policy else statistics[0])),
        ("norm_apply", (x, coefficients[:3], call["residual"], True)),
        ("norm_gradient_sums", (grad, x, mask, statistics, policy)),
        ("norm_gradient", (grad, x, mask, coefficients, policy, True)),
    ):
        torch.library.opcheck(getattr(ops, name).default, arguments)


@pytest.mark.skipif(_ops.face() == "reference", reason="the compiled ops are absent")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_bits_do_not_depend_on_the_thread_count(layout: str) -> None:
    x, grad = (laid_out(torch.randn(9, 40, 40, 40), layout) for _ in range(2))
    coefficients = torch.randn(6, 40)
    before, seen = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y, mask = ops.norm_apply(x, coefficients[:3], grad, True)
            sums = ops.norm_gradient_sums(grad, x, mask, coefficients[:2], 1)
            dx, _ = ops.norm_gradient(grad, x, mask, coefficients, 1, False)
            seen.append((ops.norm_moments(x, None), y, mask, sums, dx))
    finally:
        torch.set_num_threads(before)
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


@pytest.mark.skipif(_ops.face() == "reference", reason="the compiled ops are absent")
def test_wrong_arguments_are_refused() -> None:
    x, mask = torch.randn(4, 3, 2), torch.empty(0, dtype=torch.uint8)
    for name, arguments, message in (
        ("norm_moments", (x[:0], None), "and a value"),
        ("norm_moments", (x, torch.zeros(4)), "a value a channel"),
        ("norm_apply", (x, torch.zeros(2, 3), None, False), "coefficients must be .* of 3"),
        ("norm_apply", (x, torch.zeros(3, 3), x[:2], False), "residual must have the shape"),
        ("norm_gradient_sums", (x, x, mask, torch.zeros(2, 3), 2), "statistics must be .* of 3"),
        ("norm_gradient", (x, x, mask, torch.zeros(6, 3).double(), 0, False), "coefficients"),
        ("norm_gradient", (x, x, mask[:0].new_zeros(1), torch.zeros(6, 3), 0, False), "the mask"),
        ("norm_gradient", (x, x, mask, torch.zeros(6, 3), 3, False), "policy must be"),
    ):
        with pytest.raises(RuntimeError, match=message):
            getattr(ops, name)(*arguments)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_cuda_equals_the_cpu(shape: tuple[int, ...], layout: str) -> None:
    for dtype, policy, relu in itertools.product(TOLERANCE, NormPolicy, (False, True)):
        call = case(shape, layout, dtype)
        x, residual, grad = call["x"], call["residual"], call["grad"]
        _, statistics, mask = ops.ghost_norm(
            x, None, None, residual, policy, 3, shape[0], 1, EPS, relu
        )
        statistics = statistics.squeeze(1)
        table = torch.stack((statistics[0], call["weight"], call["bias"]))
        coefficients = torch.stack((*table, call["bias"], statistics[-1], call["weight"].abs()))
        for name, arguments in (
            ("norm_moments", (x, None)),
            ("norm_moments", (x, call["bias"])),
            ("norm_apply", (x, table, residual, relu)),
            ("norm_gradient_sums", (grad, x, mask, statistics, policy)),
            ("norm_gradient", (grad, x, mask, coefficients, policy, True)),
        ):
            expected = getattr(ops, name)(*arguments)
            moved = [a.cuda() if isinstance(a, Tensor) else a for a in arguments]
            found = getattr(ops, name)(*moved)
            found, expected = (t if isinstance(t, tuple) else (t,) for t in (found, expected))
            for one, other in zip(found, expected, strict=True):
                if one.dtype == torch.uint8:
                    same_bits(one.cpu(), other, x)
                else:
                    close(one.cpu(), other, dtype)
