"""The batch norm operator against float64, in every layout, type and norm."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from largebatch import _ops
from largebatch._ops import NormPolicy

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
POLICIES = tuple(NormPolicy)
LAYOUTS = ("contiguous", "channels_last", "transposed", "gaps")
compiled = pytest.mark.skipif(_ops.face() == "reference", reason="the compiled ops are absent")


def laid_out(x: Tensor, layout: str) -> Tensor:
    if layout == "channels_last":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "transposed":
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "gaps":
        return torch.stack((x, x), -1)[..., 0]
    return x.contiguous()


def plain(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    policy: int,
    top: int,
    ghost_size: int,
    full: int,
    eps: float,
    relu: bool,
) -> Tensor:
    """Ghost after ghost in the words of torch, or of the paper: what the operator must equal."""
    sizes = [ghost_size] * full + [x.shape[0] - full * ghost_size]
    done = []
    for ghost in x.split([size for size in sizes if size]):
        if policy == NormPolicy.L2:
            done.append(F.batch_norm(ghost, None, None, weight, bias, True, 0.0, eps))
            continue
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [-1 if d == 1 else 1 for d in range(x.dim())]
        d = ghost - ghost.mean(dims, keepdim=True)
        n = d.numel() // d.shape[1]
        if policy == NormPolicy.L1:
            scale = math.sqrt(math.pi / 2) * d.abs().mean(dims)
        else:
            c = 0.5 * (1 + math.sqrt(math.pi * math.log(4))) / math.sqrt(2 * math.log(n))
            scale = c * d.abs().transpose(0, 1).flatten(1).topk(min(top, n)).values.mean(1)
        y = d / (scale + eps).view(shape)
        y = y if weight is None else y * weight.view(shape)
        done.append(y if bias is None else y + bias.view(shape))
    y = torch.cat(done)
    y = y if residual is None else y + residual
    return y.relu() if relu else y


class Case:
    """One random call, and its derivatives."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = DTYPES[self.integer(0, 3)]
        dims = self.integer(2, 5)
        channels = (1, 3, 8, 16, 17, 64, 80, 130)[self.integer(0, 7)]
        shape = (self.integer(2, 20), channels, *(self.integer(1, 7) for _ in range(dims - 2)))
        policy, top = POLICIES[self.integer(0, 2)], (1, 3, 10)[self.integer(0, 2)]
        ghost_size = self.integer(2, 8)
        full = shape[0] // ghost_size
        if shape[0] - full * ghost_size == 1:  # too few values: joins the one before
            full = full - 1
        mean = (0.0, 5.0)[self.integer(0, 1)]
        x = self.values(shape, self.dtype, self.integer(0, 3), mean)
        wide = _ops.accumulate_dtype(self.dtype)
        self.weight = self.values((channels,), wide, 0) if self.integer(0, 2) else None
        self.bias = self.values((channels,), wide, 0) if self.integer(0, 2) else None
        residual = (
            self.values(shape, self.dtype, self.integer(0, 3)) if self.integer(0, 1) else None
        )
        self.x, self.residual = x, residual
        self.options = (policy, top, ghost_size, full, 1e-5, bool(self.integer(0, 1)))
        self.grad = self.values(shape, self.dtype, self.integer(0, 3))

    def integer(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def values(
        self, shape: tuple[int, ...], dtype: torch.dtype, layout: int, mean: float = 0.0
    ) -> Tensor:
        x = torch.randn(shape, dtype=torch.float64, generator=self.generator) + mean
        return laid_out(x.to(dtype), LAYOUTS[layout] if len(shape) > 1 else LAYOUTS[0])

    def run(self, function: Any, dtype: torch.dtype | None = None) -> list[Tensor]:
        """Return the output and the gradients of x, weight, bias, residual."""
        inputs = [
            t if t is None else t.detach().to(dtype or t.dtype).requires_grad_()
            for t in (self.x, self.weight, self.bias, self.residual)
        ]
        y = function(*inputs, *self.options)
        y = y[0] if isinstance(y, tuple) else y
        y.backward(self.grad.to(y.dtype))
        return [y, *(t.grad for t in inputs if t is not None)]


def tolerance(dtype: torch.dtype) -> float:
    return {torch.float64: 1e-9, torch.float32: 3e-4, torch.float16: 2e-2}.get(dtype, 1e-1)


def distance(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).abs().max() / (1 + expected.abs().max()))


@pytest.mark.parametrize("block", range(10))
def test_equals_float64_in_every_layout_type_and_norm(block: int) -> None:
    for seed in range(50 * block, 50 * block + 50):
        case = Case(seed)
        found = case.run(torch.ops.largebatch.ghost_norm)
        # A sign or an order that rounding decides is decided in the type of the deviations.
        l2 = case.options[0] == NormPolicy.L2
        exact = torch.float64 if l2 else _ops.accumulate_dtype(case.dtype)
        ties = case.options[0] == NormPolicy.TOP_K and case.dtype.itemsize == 2
        for index, (one, expected) in enumerate(zip(found, case.run(plain, exact), strict=True)):
            assert one.shape == expected.shape
            if ties and index == 1:
                continue  # coarse values tie, and torch.topk gives one of them all the gradient
            assert distance(one, expected) < tolerance(case.dtype), (seed, case.options)


@pytest.mark.parametrize("seed", range(20))
def test_layouts_are_kept_or_become_contiguous(seed: int) -> None:
    case = Case(seed)
    policy, top, ghost_size, full, eps, _ = case.options
    inputs = (case.x, case.weight, case.bias, case.residual)
    y, statistics, mask = torch.ops.largebatch.ghost_norm(*inputs, *case.options)
    gradient, _, _ = torch.ops.largebatch.ghost_norm_backward(
        case.grad, case.x, case.weight, statistics, mask, policy, top, ghost_size, full, eps, False
    )
    last = case.x.movedim(1, -1).is_contiguous()
    for tensor in (y, gradient):
        kept = tensor.movedim(1, -1) if last else tensor
        assert kept.is_contiguous()
        assert tensor.dtype == case.dtype


@pytest.mark.parametrize("seed", range(60))
def test_the_reference_has_the_statistics_the_mask_and_the_gradients(seed: int) -> None:
    case = Case(seed)
    policy, top, ghost_size, full, eps, _ = case.options
    inputs = (case.x, case.weight, case.bias, case.residual)
    y, statistics, mask = torch.ops.largebatch.ghost_norm(*inputs, *case.options)
    expected = _ops.reference_ghost_norm(*inputs, *case.options)
    assert mask.shape == expected[2].shape
    assert statistics.shape == expected[1].shape
    assert distance(statistics, expected[1]) < 1e-5
    assert distance(y, expected[0]) < tolerance(case.dtype)
    arguments = (case.x, case.weight, statistics, mask, policy, top, ghost_size, full, eps)
    has_residual = case.residual is not None
    got = torch.ops.largebatch.ghost_norm_backward(case.grad, *arguments, has_residual)
    want = _ops.reference_ghost_norm_backward(case.grad, *arguments, has_residual)
    for one, other in zip(got, want, strict=True):
        assert one.shape == other.shape
        if one.numel():
            assert distance(one, other) < tolerance(case.dtype)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_weight_and_bias_have_a_gradient_per_ghost(policy: NormPolicy, layout: str) -> None:
    """What a noise estimate needs: the same call on each ghost alone gives its own gradients."""
    torch.manual_seed(0)
    x, grad = (laid_out(torch.randn(10, 5, 3, 3), layout) for _ in range(2))
    weight = torch.rand(5)
    y, statistics, mask = torch.ops.largebatch.ghost_norm(
        x, weight, None, None, policy, 2, 4, 2, 1e-5, True
    )
    options = (policy, 2, 4, 2, 1e-5, False)
    _, sums, _ = torch.ops.largebatch.ghost_norm_backward(
        grad, x, weight, statistics, mask, *options
    )
    assert sums.shape == (2, 3, 5)
    for index, (ghost, part) in enumerate(zip(x.split(4), grad.split(4), strict=True)):
        w, b = weight.clone().requires_grad_(), torch.zeros(5, requires_grad=True)
        alone, _ = _ops.ghost_norm(
            ghost, w, b, ghost_size=4, full=0, eps=1e-5, policy=policy, top=2, relu=True
        )
        alone.backward(part)
        torch.testing.assert_close(sums[:, index], torch.stack((w.grad, b.grad)))
    assert (y >= 0).all()


BIG = {
    "planar": (9, 5, 40, 40),
    "short": (16, 70, 3, 3),
    "rows": (24, 40, 40, 40),
    "flat": (5000, 70),
}


@compiled
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("shape", BIG)
def test_bits_do_not_depend_on_the_thread_count(policy: NormPolicy, shape: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(BIG[shape])
    x = laid_out(x, "channels_last" if shape == "rows" else "contiguous")
    weight, bias = torch.randn(2, x.shape[1])
    before = torch.get_num_threads()
    seen: list[list[Tensor]] = []
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            out = []
            for ghost_size in (4, x.shape[0]):
                options = (policy, 10, ghost_size, x.shape[0] // ghost_size, 1e-5)
                y, statistics, mask = torch.ops.largebatch.ghost_norm(
                    x, weight, bias, x, *options, True
                )
                out += [y, statistics, mask]
                out += torch.ops.largebatch.ghost_norm_backward(
                    y - 1, x, weight, statistics, mask, *options, True
                )
            seen.append(out)
    finally:
        torch.set_num_threads(before)
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(64, 4, 9, 9), (512, 20)])
@pytest.mark.parametrize("outlier", [False, True])
def test_no_cancellation_far_from_zero(layout: str, shape: tuple[int, ...], outlier: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape) + 1e4
    if outlier:
        x[0] = 0.0  # the values that a shift is taken from are the ones that do not fit
    x = laid_out(x, layout)
    exact = x.double()
    for policy in POLICIES:
        size = shape[0] // 4
        _, found = _ops.ghost_norm(x, ghost_size=size, full=4, eps=1e-5, policy=policy)
        _, expected, _ = _ops.reference_ghost_norm(
            exact, None, None, None, policy, 1, size, 4, 1e-5, False
        )
        # Half a unit in the mean's last place is 5e-4 of a deviation here.
        small = 1e-5 * exact.std().item()
        torch.testing.assert_close(found[0].double(), expected[0], rtol=6e-8, atol=small)
        if policy == NormPolicy.L2:
            torch.testing.assert_close(found[1].double(), expected[1], rtol=1e-5, atol=0)
        else:
            torch.testing.assert_close(found[1].double(), expected[1], rtol=1e-3, atol=0)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_float16_values_whose_squares_overflow(layout: str) -> None:
    torch.manual_seed(0)
    x = laid_out((torch.randn(32, 5, 8, 8) * 300).half(), layout).requires_grad_()
    assert not torch.isfinite(x * x).all()
    y, _ = _ops.ghost_norm(x, ghost_size=8, full=4, eps=1e-5, policy=NormPolicy.L1, relu=True)
    y.backward(torch.ones_like(y))
    expected, _ = _ops.ghost_norm(
        x.detach().double(), ghost_size=8, full=4, eps=1e-5, policy=NormPolicy.L1, relu=True
    )
    assert x.grad is not None and torch.isfinite(x.grad).all()
    torch.testing.assert_close(y.double(), expected, rtol=1e-3, atol=1e-3)


def scale_of_normal_values(policy: NormPolicy, count: int, top: int, repeats: int) -> float:
    x = torch.randn(count, repeats, generator=torch.Generator().manual_seed(count))
    _, statistics = _ops.ghost_norm(x, ghost_size=count, full=1, eps=1e-5, policy=policy, top=top)
    return float(_ops.norm_constant(policy, count) * statistics[1].mean())


def test_l1_estimates_the_deviation_of_normal_values() -> None:
    assert scale_of_normal_values(NormPolicy.L1, 4096, 1, 200) == pytest.approx(1.0, rel=3e-3)
    assert _ops.norm_constant(NormPolicy.L1, 7) == pytest.approx(1.2533141, rel=1e-7)


@pytest.mark.parametrize(
    ("top", "count", "expected"),
    [
        (1, 64, 1.38),
        (1, 256, 1.43),
        (1, 1024, 1.43),
        (1, 4096, 1.44),
        (1, 16384, 1.44),
        (10, 64, 0.98),
        (10, 256, 1.12),
        (10, 1024, 1.20),
        (10, 4096, 1.25),
        (10, 16384, 1.28),
    ],
)
def test_the_published_constant_gives_the_tabulated_multiples(
    top: int, count: int, expected: float
) -> None:
    repeats = 400 if count < 10000 else 100
    found = scale_of_normal_values(NormPolicy.TOP_K, count, top, repeats)
    assert found == pytest.approx(expected, abs=0.018)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("relu", [False, True])
def test_derivatives_of_first_and_second_order(policy: NormPolicy, relu: bool) -> None:
    torch.manual_seed(3)
    tensors = [torch.randn(7, 3, 2, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    weight, bias = (torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def call(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y, _ = _ops.ghost_norm(
            x,
            weight,
            bias,
            ghost_size=3,
            full=2,
            eps=1e-3,
            policy=policy,
            top=2,
            residual=residual,
            relu=relu,
        )
        return y

    # The last ghost has one sample, of two values: enough.
    inputs = (*tensors, weight, bias)
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


def test_third_derivatives_are_right_too() -> None:
    x = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)

    def third(norm: Any) -> Tensor:
        value = norm(x).pow(3).sum()
        for _ in range(2):
            (slope,) = torch.autograd.grad(value, x, create_graph=True)
            value = slope.pow(3).sum()
        (slope,) = torch.autograd.grad(value, x)
        return slope

    ours = third(lambda t: _ops.ghost_norm(t, ghost_size=3, full=2, eps=0.1)[0])

    def plainly(x: Tensor) -> Tensor:  # torch's own batch norm stops at the second
        ghosts = x.view(2, 3, 2)
        variance = ghosts.var(1, correction=0, keepdim=True)
        return ((ghosts - ghosts.mean(1, keepdim=True)) * (variance + 0.1).rsqrt()).view(6, 2)

    theirs = third(plainly)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_equal_largest_values_share_the_gradient(layout: str) -> None:
    values = torch.tensor([3.0, -3.0, 1.0, -1.0, 3.0, -3.0], dtype=torch.float64)
    x = laid_out(values.view(3, 1, 2), layout).requires_grad_()
    y, _ = _ops.ghost_norm(x, ghost_size=3, full=1, eps=0.0, policy=NormPolicy.TOP_K, top=1)
    y[1].sum().backward()
    assert x.grad is not None
    assert x.grad[0].abs().max() == pytest.approx(x.grad[2].abs().max().item())
    # torch's own maximum shares evenly as well.
    z = values.clone().requires_grad_()
    d = z - z.mean()
    c = _ops.norm_constant(NormPolicy.TOP_K, 6)
    (d[2:4] / (c * d.abs().amax())).sum().backward()
    assert z.grad is not None
    torch.testing.assert_close(x.grad.flatten(), z.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_nan_is_not_hidden(layout: str, policy: NormPolicy) -> None:
    x = torch.randn(8, 3, 4, 4)
    x[5, 1, 2, 2] = math.nan
    y, statistics = _ops.ghost_norm(
        laid_out(x, layout), ghost_size=4, full=2, eps=1e-5, policy=policy, top=3, relu=True
    )
    assert y[4:, 1].isnan().all()
    assert not y[:4].isnan().any()
    assert statistics[1].isnan().sum() == 1


@compiled
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_outputs_stored_past_the_caches(layout: str) -> None:
    torch.manual_seed(0)
    x = laid_out(torch.randn(8, 48, 112, 112), layout)  # 19 MB
    weight = torch.rand(48)
    y, statistics, mask = torch.ops.largebatch.ghost_norm(
        x, weight, None, x, 0, 1, 4, 2, 1e-5, True
    )
    wide, w = x.requires_grad_(), weight
    expected = plain(wide, w, None, x.detach(), 0, 1, 4, 2, 1e-5, True)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    dx, _, dresidual = torch.ops.largebatch.ghost_norm_backward(
        x.detach(), x.detach(), weight, statistics, mask, 0, 1, 4, 2, 1e-5, True
    )
    (want,) = torch.autograd.grad(expected, wide, x.detach())
    torch.testing.assert_close(dx, want, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(dresidual, torch.where(y > 0, x.detach(), 0.0))


ARGUMENTS = {"x": torch.randn(6, 3, 4, 4), "weight": None, "bias": None, "residual": None}
OPTIONS = {"policy": 0, "top": 1, "ghost_size": 3, "full": 2, "eps": 1e-5, "relu": False}


@compiled
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(6)}, "at least 2 dimensions"),
        ({"x": torch.zeros(6, 3).int()}, "must be float32"),
        ({"weight": torch.zeros(4)}, "a value a channel"),
        ({"bias": torch.zeros(3).double()}, "float64 x, else float32"),
        ({"residual": torch.zeros(6, 3, 4, 5)}, "residual must have the shape"),
        ({"residual": torch.zeros(6, 3, 4, 4).half()}, "residual must have the shape and type"),
        ({"full": 3}, "do not fit a batch of 6"),
        ({"ghost_size": 0}, "do not fit"),
        ({"policy": 3}, "policy must be"),
        ({"policy": 2, "top": 0}, "policy must be"),
    ],
)
def test_wrong_arguments_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        torch.ops.largebatch.ghost_norm(*{**ARGUMENTS, **OPTIONS, **change}.values())


@pytest.mark.parametrize(
    ("policy", "layout", "dtype"),
    [
        *itertools.product(POLICIES, ["contiguous", "channels_last"], [torch.float32]),
        (NormPolicy.L1, "gaps", torch.bfloat16),
    ],
)
def test_opcheck(policy: NormPolicy, layout: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = laid_out(torch.randn(7, 3, 2, 2), layout).to(dtype).requires_grad_()
    weight, bias = torch.randn(2, 3).unbind()
    arguments = (x, weight.requires_grad_(), bias.requires_grad_(), x.detach().clone())
    options = (policy, 2, 3, 2, 1e-5)
    torch.library.opcheck(torch.ops.largebatch.ghost_norm.default, (*arguments, *options, True))
    torch.library.opcheck(
        torch.ops.largebatch.ghost_norm.default, (x, None, None, None, *options, False)
    )
    with torch.no_grad():
        _, statistics, mask = torch.ops.largebatch.ghost_norm(*arguments, *options, True)
    torch.library.opcheck(
        torch.ops.largebatch.ghost_norm_backward.default,
        (torch.randn_like(x), x.detach(), weight.detach(), statistics, mask, *options, True),
    )


def test_compile_traces_forward_and_backward_whole() -> None:
    torch.manual_seed(0)
    x, residual = torch.randn(2, 10, 3, 4, 4)
    weight = torch.rand(3, requires_grad=True)

    def step(x: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
        y, statistics = _ops.ghost_norm(
            x * 2, weight, ghost_size=4, full=2, eps=1e-5, residual=residual, relu=True
        )
        return y.sin() + statistics.sum()

    inputs = [t.clone().requires_grad_() for t in (x, residual)]
    copies = [t.clone().requires_grad_() for t in (x, residual)]
    expected = step(*inputs, weight)
    found = torch.compile(step, fullgraph=True, backend="aot_eager")(*copies, weight)
    torch.testing.assert_close(found, expected)
    want = torch.autograd.grad(expected.sum(), [*inputs, weight])
    got = torch.autograd.grad(found.sum(), [*copies, weight])
    torch.testing.assert_close(got, want)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("block", range(4))
def test_cuda_equals_the_cpu(block: int) -> None:
    for seed in range(50 * block, 50 * block + 50):
        case = Case(seed)
        expected = case.run(torch.ops.largebatch.ghost_norm)
        for name in ("x", "weight", "bias", "residual", "grad"):
            tensor = getattr(case, name)
            setattr(case, name, None if tensor is None else tensor.cuda())
        found, again = (case.run(torch.ops.largebatch.ghost_norm) for _ in range(2))
        ties = case.options[0] == NormPolicy.TOP_K and case.dtype.itemsize == 2
        for index, (one, other, want) in enumerate(zip(found, again, expected, strict=True)):
            assert torch.equal(one, other)
            if not (ties and index == 1):
                assert distance(one.cpu(), want) < tolerance(case.dtype), (seed, case.options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", [(70, 64, 56, 56), (64, 256, 28, 28), (64, 24, 5, 3)])
@pytest.mark.parametrize("policy", [NormPolicy.L2, NormPolicy.L1])
def test_cuda_slabs_equal_the_usual_kernels(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], policy: NormPolicy
) -> None:
    """Blocks that wait for each other are off by default: csrc/norm/cuda_slab_cut.h."""
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x, residual, grad = (
            laid_out(t.to(dtype), "channels_last") for t in torch.randn(3, *shape, device="cuda")
        )
        weight, bias = torch.randn(2, shape[1], device="cuda")
        options = (policy, 1, 32, 2, 1e-5)
        found = []
        for wish in ("0", "1", "1"):
            monkeypatch.setenv("LARGEBATCH_NORM_SLABS", wish)
            y, statistics, mask = torch.ops.largebatch.ghost_norm(
                x, weight, bias, residual, *options, True
            )
            # One mask and one set of statistics for all: rounding decides about values near zero.
            before = found[0] if found else (y, statistics, mask)
            back = torch.ops.largebatch.ghost_norm_backward(
                grad, x, weight, before[1], before[2], *options, True
            )
            found.append((y, statistics, mask, *back))
        usual, slabs, again = found
        for one, other, repeated in zip(usual, slabs, again, strict=True):
            assert torch.equal(other, repeated)
            if one.dtype != torch.uint8:
                assert distance(other, one) < tolerance(dtype)
