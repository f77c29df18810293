"""Derivatives in forward mode and under ``torch.func``: those of the same norm in plain PyTorch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.distributed as dist
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.utils._pytree import tree_leaves

from largebatch import _ops
from largebatch._ops.norm_reference import NormPolicy, ghost_counts, normalized
from largebatch.nn.over_ranks import norm_over_ranks, ranks_of
from largebatch.processes.ending import end_group

SIZE, FULL, EPS = 4, 1, 1e-3  # 7 samples: a ghost of four, one of three
POLICIES = [(NormPolicy.L2, 1), (NormPolicy.L1, 1), (NormPolicy.TOP_K, 1), (NormPolicy.TOP_K, 3)]


@pytest.fixture(autouse=True)
def quiet_loops() -> Any:
    with (
        warnings.catch_warnings()
    ):  # vmap runs a loop over an operator that has no rule, and says so
        warnings.filterwarnings("ignore", message=".*performance drop.*")
        yield


def functions(policy: NormPolicy, top: int, relu: bool) -> tuple[Callable[..., Tensor], ...]:
    """The operator, and the same by differentiable operations."""

    def ours(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        options: dict[str, Any] = {"ghost_size": SIZE, "full": FULL, "eps": EPS, "relu": relu}
        options |= {"policy": policy, "top": top, "residual": residual}
        return _ops.ghost_norm(x, weight, bias, **options)[0]

    def plain(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        counts = ghost_counts(len(x), SIZE, FULL)
        y = normalized(x, weight, bias, policy, top, counts, EPS)[0] + residual
        return y.relu() if relu else y

    return ours, plain


def arguments() -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    x, residual = torch.randn(2, 7, 3, 2, dtype=torch.float64)
    return x, *(torch.rand(2, 3, dtype=torch.float64) + 0.5), residual


ALL = (0, 1, 2, 3)
TRANSFORMS: dict[str, Callable[..., Any]] = {
    "jvp": lambda f, *a: jvp(f, a, tuple(t.cos() for t in a)),
    "jacfwd": lambda f, *a: jacfwd(f, ALL)(*a),
    "jacrev": lambda f, *a: jacrev(f, ALL)(*a),
    "hessian": lambda f, *a: hessian(scalar(f), ALL)(*a),
    "reverse over reverse": lambda f, *a: jacrev(jacrev(scalar(f), ALL), ALL)(*a),
    "reverse over forward": lambda f, *a: jacrev(jacfwd(scalar(f), ALL), ALL)(*a),
    "gradients by sample": lambda f, *a: vmap(grad(scalar(f), ALL), (0, None, None, 0))(
        torch.stack((a[0], a[0].cos())), a[1], a[2], torch.stack((a[3], a[3].sin()))
    ),
    "gradients by model": lambda f, *a: vmap(grad(scalar(f), ALL), (None, 0, 0, None))(
        a[0], torch.stack((a[1], a[2])), torch.stack((a[2], a[1])), a[3]
    ),
    "tangents by model": lambda f, *a: vmap(
        lambda w: jvp(lambda x: f(x, w, *a[2:]), a[:1], (a[0].cos(),))
    )(torch.stack((a[1], a[2]))),
    "third order": lambda f, *a: grad(
        lambda *b: square(grad(lambda *c: square(grad(scalar(f), ALL)(*c)), ALL)(*b)), ALL
    )(*a),
}


def scalar(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def total(*args: Tensor) -> Tensor:
        y = function(*args)
        return (y.pow(3) * torch.arange(y.numel(), dtype=y.dtype).view_as(y).cos()).sum()

    return total


def square(tensors: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([t.square().sum() for t in tensors]).sum()


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize(
    ("policy", "top", "relu"),
    [(*policy, relu) for policy, relu in zip(POLICIES, (False, True, True, False), strict=True)],
)
def test_transforms(policy: NormPolicy, top: int, relu: bool, transform: str) -> None:
    ours, plain = functions(policy, top, relu)
    found, expected = (tree_leaves(TRANSFORMS[transform](f, *arguments())) for f in (ours, plain))
    assert any(bool(one.any()) for one in expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("policy", "top"), POLICIES)
def test_tangents_are_finite_differences(policy: NormPolicy, top: int) -> None:
    ours, _ = functions(policy, top, relu=False)
    args = arguments()
    tangents = tuple(t.cos() for t in args)
    step = 1e-6
    low, high = (ours(*(a + s * t for a, t in zip(args, tangents, strict=True)))
                 for s in (-step, step))  # fmt: skip
    expected = (high - low) / (2 * step)
    with forward_ad.dual_level():
        duals = (forward_ad.make_dual(a, t) for a, t in zip(args, tangents, strict=True))
        tangent = forward_ad.unpack_dual(ours(*duals)).tangent
    torch.testing.assert_close(tangent, expected, rtol=1e-6, atol=1e-6)


def test_statistics_have_no_tangents() -> None:
    x, *_ = arguments()
    with forward_ad.dual_level():
        y, statistics = _ops.ghost_norm(
            forward_ad.make_dual(x, x), ghost_size=SIZE, full=FULL, eps=EPS
        )
        assert forward_ad.unpack_dual(y).tangent is not None
        assert forward_ad.unpack_dual(statistics).tangent is None


@pytest.mark.parametrize(
    "call",
    [
        lambda x: _ops.global_norm([x]),
        lambda x: _ops.clip_factor([x], 1.0)[1],
        lambda x: _ops.sum_shards([x, x], torch.empty_like(x)).sum(),
        lambda x: torch.ops.largebatch.norm_moments(x, None).sum(),
        lambda x: torch.ops.largebatch.norm_apply(x, x.new_ones(3, 3), None, False)[0].sum(),
    ],
)
def test_what_has_no_derivative_says_so(call: Callable[[Tensor], Tensor]) -> None:
    x = arguments()[0]
    call(x)
    with pytest.raises(RuntimeError, match="has no derivative"):
        grad(call)(x)
    with pytest.raises(RuntimeError, match="has no derivative"):
        jvp(call, (x,), (x,))


def test_over_ranks_there_are_first_derivatives_alone(tmp_path: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert dist.group.WORLD is not None
        ranks, x = ranks_of(dist.group.WORLD), arguments()[0]

        def call(x: Tensor) -> Tensor:
            return norm_over_ranks(x, None, None, ranks, shift=None, eps=EPS)[0].pow(3).sum()

        with pytest.raises(RuntimeError, match="has no derivative inside of"):
            grad(call)(x)
        with forward_ad.dual_level(), pytest.raises(RuntimeError, match="in forward mode"):
            call(forward_ad.make_dual(x, x))
        x.requires_grad_()
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.autograd.grad(call(x), x, create_graph=True)
        assert torch.autograd.grad(call(x), x)[0].any()
    finally:
        end_group()
