"""The CUDA kernels of the norms: how many a call launches, and every way in which they are cut."""

from __future__ import annotations

import itertools
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from largebatch import _ops
from largebatch._ops import NormPolicy

ops = torch.ops.largebatch

LAUNCHES = (2, 2)  # of kernels, forward and backward, whatever the layout and the norm
NORMS = {
    "L2": (NormPolicy.L2, 1),
    "L1": (NormPolicy.L1, 1),
    "top-1": (NormPolicy.TOP_K, 1),
    "top-3": (NormPolicy.TOP_K, 3),
}
# Cut into parts and not; rows of multiples of eight values and not; a warp and a block a channel.
CUTS = {
    "rows": ((17, 24, 5, 3), True),
    "rows-in-parts": ((9, 16, 46, 46), True),
    "rows-in-parts-by-values": ((9, 5, 71, 61), True),
    "wide-rows": ((6, 520, 3, 3), True),
    "planar": ((17, 24, 4, 4), False),
    "planar-in-parts": ((40, 2, 8, 12), False),
    "planar-blocks": ((8, 2, 96, 96), False),
    "across": ((17, 24, 5, 5), False),
    "across-short": ((17, 8, 3, 3), False),
    "across-parts": ((40, 8, 9, 11), False),
    "across-blocks": ((8, 8, 95, 95), False),
    "planar-by-values": ((17, 5, 5, 5), False),
}


@pytest.fixture
def device(emulation: ModuleType):
    with emulation.serving() as library:
        yield library


def laid_out(x: Tensor, is_last: bool) -> Tensor:
    return x.to(memory_format=torch.channels_last) if is_last else x


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    return {"rtol": 2e-4, "atol": 2e-4} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 5e-2}


def both(call: str, *arguments: Any) -> list[tuple[Tensor, Tensor]]:
    """Return what the kernel and the reference give."""
    found, expected = getattr(ops, call)(*arguments), getattr(_ops, f"reference_{call}")(*arguments)
    return list(zip(found, expected, strict=True))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("is_last", [False, True])
def test_launches(device: Any, norm: str, is_last: bool) -> None:
    policy, top = NORMS[norm]
    x = laid_out(torch.randn(9, 16, 46, 46), is_last)
    before = device.emulation_launches()
    y, statistics, mask = ops.ghost_norm(x, None, None, x, policy, top, 9, 1, 1e-5, True)
    middle = device.emulation_launches()
    ops.ghost_norm_backward(y, x, None, statistics, mask, policy, top, 9, 1, 1e-5, True)
    after = device.emulation_launches()
    assert (middle - before, after - middle) == LAUNCHES


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cut", CUTS)
def test_every_cut_is_right(device: Any, cut: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    shape, is_last = CUTS[cut]
    x, grad, residual = (laid_out(t.to(dtype), is_last) for t in torch.randn(3, *shape))
    weight, bias = torch.randn(2, shape[1])
    size = shape[0] // 2  # two ghosts, and one that is smaller
    for norm, relu in itertools.product(NORMS, (False, True)):
        policy, top = NORMS[norm]
        options = (policy, top, size, 2 - (shape[0] % size == 0), 1e-5)
        more = residual if relu else None
        for one, other in both("ghost_norm", x, weight, bias, more, *options, relu):
            if one.dtype != torch.uint8:
                torch.testing.assert_close(one, other, **tolerance(dtype))
        # One mask for both: rounding decides about values near zero.
        _, statistics, mask = _ops.reference_ghost_norm(x, weight, bias, more, *options, relu)
        arguments = (grad, x, weight, statistics, mask, *options, relu)
        for one, other in both("ghost_norm_backward", *arguments):
            scale = 1 + float(other.abs().max()) if other.numel() else 1.0
            torch.testing.assert_close(one / scale, other / scale, **tolerance(dtype))


@pytest.mark.parametrize("cut", CUTS)
def test_the_mask_is_that_of_the_output(device: Any, cut: str) -> None:
    torch.manual_seed(0)
    shape, is_last = CUTS[cut]
    x = laid_out(torch.randn(shape), is_last)
    table = torch.randn(3, shape[1])
    y, mask = ops.norm_apply(x, table, None, True)
    expected, bits = _ops.reference_norm_apply(x, table, None, True)
    torch.testing.assert_close(y, expected)
    assert torch.equal(mask, bits)


@pytest.mark.parametrize("offset", [0, 1, 3, 4, 8])
@pytest.mark.parametrize("is_last", [False, True])
def test_views_that_are_not_aligned(device: Any, is_last: bool, offset: int) -> None:
    torch.manual_seed(0)
    shape = (6, 16, 3, 4)
    aligned = laid_out(torch.randn(shape).bfloat16(), is_last)
    memory = torch.empty(aligned.numel() + 8, dtype=torch.bfloat16)
    x = memory.as_strided(shape, aligned.stride(), offset)
    x.copy_(aligned)
    for one, other in zip(
        ops.ghost_norm(x, None, None, None, 0, 1, 3, 2, 1e-5, True),
        ops.ghost_norm(aligned, None, None, None, 0, 1, 3, 2, 1e-5, True),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("cut", CUTS)
def test_the_largest_deviation_needs_no_pass_of_its_own_and_is_exact(device: Any, cut: str) -> None:
    torch.manual_seed(0)
    shape, is_last = CUTS[cut]
    x = laid_out(torch.randn(shape) * 3 + 5, is_last)
    _, statistics, _ = ops.ghost_norm(x, None, None, None, 2, 1, shape[0], 1, 1e-5, False)
    mean, spread, kth = statistics[:, 0]
    largest = (x - mean.view(-1, 1, 1)).abs().amax((0, 2, 3))
    assert torch.equal(kth, largest)
    assert torch.equal(spread, largest)


@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_stays_none(device: Any, is_last: bool, value: float) -> None:
    x = laid_out(torch.randn(6, 8, 3, 3), is_last)
    x[4, 2, 1, 1] = value
    for norm in NORMS:
        policy, top = NORMS[norm]
        for one, other in both("ghost_norm", x, None, None, None, policy, top, 3, 2, 1e-5, False):
            torch.testing.assert_close(one, other, equal_nan=True)


# --- Slabs: a ghost is read once, and stays in the shared memory of blocks that meet. -------------

SLABS = ((17, 24, 5, 3), (9, 16, 26, 26), (6, 520, 3, 3), (34, 8, 7, 7), (512, 64, 1, 1))


@pytest.fixture
def by_slabs(device: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LARGEBATCH_NORM_SLABS", "1")
    return device


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SLABS)
def test_slabs_are_right_in_one_launch_each(by_slabs: Any, shape: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, grad, residual = (laid_out(t.to(dtype), True) for t in torch.randn(3, *shape))
    weight, bias = torch.randn(2, shape[1])
    size = shape[0] // 2
    for policy, relu in itertools.product((NormPolicy.L2, NormPolicy.L1), (False, True)):
        options = (policy, 1, size, 2 - (shape[0] % size == 0), 1e-5)
        more = residual if relu else None
        before = by_slabs.emulation_launches()
        found = ops.ghost_norm(x, weight, bias, more, *options, relu)
        assert by_slabs.emulation_launches() == before + 1
        expected = _ops.reference_ghost_norm(x, weight, bias, more, *options, relu)
        for one, other in zip(found[:2], expected[:2], strict=True):
            torch.testing.assert_close(one, other, **tolerance(dtype))
        y, statistics, mask = expected
        arguments = (grad, x, weight, statistics, mask, *options, relu)
        for one, other in both("ghost_norm_backward", *arguments):
            scale = 1 + float(other.abs().max()) if other.numel() else 1.0
            torch.testing.assert_close(one / scale, other / scale, **tolerance(dtype))
        assert by_slabs.emulation_launches() == before + 2
        assert torch.isfinite(y).all()


@pytest.mark.parametrize("norm", ["L2", "L1"])
def test_slabs_differ_from_the_usual_kernels_by_roundings(
    device: Any, monkeypatch: pytest.MonkeyPatch, norm: str
) -> None:
    """Sums are cut elsewhere: float32 statistics may differ by two units in the last place."""
    torch.manual_seed(0)
    x = laid_out(torch.randn(32, 64, 14, 14) * 3 + 2, True)
    options = (*NORMS[norm], 16, 2, 1e-5, True)
    usual = ops.ghost_norm(x, None, None, None, *options)
    monkeypatch.setenv("LARGEBATCH_NORM_SLABS", "1")
    slabs = ops.ghost_norm(x, None, None, None, *options)
    torch.testing.assert_close(slabs[1], usual[1], rtol=2.4e-7, atol=2.4e-7)
    torch.testing.assert_close(slabs[0], usual[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "is_last", "dtype"),
    [
        ((9, 16, 3, 3), False, torch.float32),  # planar
        ((9, 12, 3, 3), True, torch.float32),  # no multiple of eight channels
        ((9, 16, 3, 3), True, torch.float64),
        ((64, 8, 128, 128), True, torch.float32),  # more blocks than run at once
    ],
)
def test_what_does_not_fit_goes_the_usual_way(
    by_slabs: Any, shape: Any, is_last: bool, dtype: torch.dtype
) -> None:
    x = laid_out(torch.randn(shape, dtype=dtype), is_last)
    before = by_slabs.emulation_launches()
    ops.ghost_norm(x, None, None, None, 0, 1, shape[0], 1, 1e-5, False)
    assert by_slabs.emulation_launches() == before + 2
