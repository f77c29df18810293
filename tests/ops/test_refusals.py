"""What every operator refuses: memory that is gone, sizes beyond integers, other devices, writes
that meet other tensors, and changes that torch's own operators refuse.

Each call is made in a child of this process, so that a crash or an endless loop is a failure.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from largebatch import _ops

ops = torch.ops.largebatch
compiled = pytest.mark.skipif(_ops.face() == "reference", reason="the compiled ops are absent")


def refusal(call: Callable[[], Any]) -> str:
    """Return the message of a call's error, from a child process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.setitimer(signal.ITIMER_PROF, 5)
        text = "accepted"
        try:
            call()
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(writer, text[:1000].encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return said or f"ended with status {status}, a signal if negative"


def lists(count: int = 2, moments: int = 2) -> list[list[Tensor]]:
    torch.manual_seed(0)
    return [[torch.rand(4, 3) for _ in range(count)] for _ in range(2 + moments)]


def tables(count: int) -> list[Tensor]:
    settings = torch.tensor([[0.1, 0.0, 1.0]] * count, dtype=torch.float64).view(count, 3)
    return [torch.zeros(count, 3, dtype=torch.float64), settings]


FACTORS = {"grad_factor": None, "found_inf": None}
SGD = {"lr": 0.1, "momentum": 0.9, "dampening": 0.0, "weight_decay": 0.0, "decoupled": False}
SGD |= {"nesterov": False, "maximize": False, "lr_inside_momentum": False, "buffer_factor": 1.0}
LARS = {"lr_factor": None, "momentum": 0.9, "trust_coefficient": 0.1, "eps": 0.0, "joint": False}
LARS |= {"lr_inside": True, "ratio_inside": True, "nesterov": False, "maximize": False}
LARS |= {"clip_ratio": False, "zero_is_raw": False, "stage": 0}
LAMB = {"lr_factor": None, "beta1": 0.9, "beta2": 0.99, "eps": 1e-6, "bias_correction": 1}
LAMB |= {"grad_averaging": True, "maximize": False, "min_ratio": 0.0, "max_ratio": 9.0, "stage": 0}


def sgd(
    params: list[Tensor], grads: list[Tensor], buffers: list[Tensor], *masters: Any, **other: Any
) -> None:
    ops.sgd_(params, grads, buffers, *(masters or ([],)), **{**FACTORS, **SGD, **other})


def lars(
    params: list[Tensor],
    grads: list[Tensor],
    buffers: list[Tensor],
    *given: Tensor,
    **other: Any,
) -> None:
    found = given or tables(len(params))
    ops.lars_(params, grads, buffers, [], *found, **{**FACTORS, **LARS, **other})


def lamb(
    params: list[Tensor],
    grads: list[Tensor],
    firsts: list[Tensor],
    seconds: list[Tensor],
    steps: list[Tensor] | None = None,
    **other: Any,
) -> None:
    steps = [torch.zeros(()) for _ in params] if steps is None else steps
    found = tables(len(params))
    ops.lamb_(params, grads, firsts, seconds, [], steps, *found, **{**FACTORS, **LAMB, **other})


def norm(x: Tensor, size: int = 2, full: int = 2, top: int = 1, policy: int = 0) -> Any:
    return ops.ghost_norm(x, None, None, None, policy, top, size, full, 1e-5, False)


def norm_backward(size: int, full: int) -> Any:
    x, statistics = torch.rand(4, 3), torch.rand(2, 2, 3)
    mask = torch.empty(0, dtype=torch.uint8)
    return ops.ghost_norm_backward(x, x, None, statistics, mask, 0, 1, size, full, 1e-5, False)


@compiled
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, g, m, v: lamb(p, g, [], [], []), "0 first moments"),
        (lambda p, g, m, v: lamb(p, g, m, []), "0 second moments"),
        (lambda p, g, m, v: lamb(p, g, [], v), "0 first moments"),
        (lambda p, g, m, v: lamb(p, g, m, v, []), "0 steps"),
        (lambda p, g, m, v: lamb(p, g, m[:1], v), "1 first moments"),
        (lambda p, g, m, v: lamb([], [], m, v), "2 first moments"),
        (lambda p, g, m, v: lars(p, g, []), "0 momentum buffers"),
        (lambda p, g, m, v: lars(p, g, m, momentum=0.0), "2 momentum buffers"),
        (lambda p, g, m, v: lars(p, [], m), "0 gradients"),
        (lambda p, g, m, v: sgd(p, g, m[:1]), "1 momentum buffers"),
        (lambda p, g, m, v: sgd(p, g, m, p[:1]), "1 masters"),
        (lambda p, g, m, v: ops.clip_factor([], 1.0, eps=0.0, scale=torch.ones(())), "a tensor"),
    ],
)
def test_lists_of_other_lengths(call: Callable[..., Any], message: str) -> None:
    assert message in refusal(lambda: call(*lists()))


@compiled
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: norm(torch.rand(4, 3), 2**62, 2), "do not fit"),
        (lambda: norm(torch.rand(4, 3), 2, 2**62), "do not fit"),
        (lambda: norm(torch.rand(4, 3), 2**32, 2**32), "do not fit"),
        (lambda: norm(torch.rand(4, 3), -(2**63), 2), "do not fit"),
        (lambda: norm(torch.rand(4, 3), 2, -1), "do not fit"),
        (lambda: norm_backward(2**62, 2), "do not fit"),
        (lambda: norm_backward(2**63 - 1, 2**63 - 1), "do not fit"),
        (lambda: ops.hadamard(torch.ones(2, 4), 2**62 + 1), "no more than 2^48"),
        (lambda: ops.hadamard(torch.ones(2, 4), 2**63 - 1), "no more than 2^48"),
        (lambda: ops.hadamard(torch.empty(0, 2**62 + 1), 2**62 + 1), "no more than 2^48"),
        (lambda: ops.hadamard(torch.ones(2, 4), -(2**63)), "at least one of each"),
        (lambda: lars(*lists(moments=1), stage=3), "stage must be"),
        (lambda: lars(*lists(moments=1), stage=-1), "stage must be"),
        (lambda: lamb(*lists(), stage=2**62), "stage must be"),
        (lambda: lamb(*lists(), bias_correction=3), "bias_correction must be"),
        (lambda: lamb(*lists(), bias_correction=-1), "bias_correction must be"),
        (lambda: lamb(*lists(), min_ratio=2.0, max_ratio=1.0), "no more than max_ratio"),
        (lambda: lamb(*lists(), max_ratio=float("nan")), "no more than max_ratio"),
    ],
)
def test_numbers_out_of_range(call: Callable[..., Any], message: str) -> None:
    assert message in refusal(call)


def gone(tensor: Tensor, part: int = 0) -> Tensor:
    """Return a copy whose storage has shrunk to `part` bytes."""
    copy = tensor.clone()
    copy.untyped_storage().resize_(part)
    return copy


def view_gone(view: Tensor, part: int = 0) -> Tensor:
    view.untyped_storage().resize_(part)
    return view


ROW, X = torch.rand(3), torch.rand(4, 3)
NO_MASK = torch.empty(0, dtype=torch.uint8)
GONE = {
    "sgd_ parameter": lambda: sgd([gone(X)], [X], [X.clone()]),
    "sgd_ gradient": lambda: sgd([X.clone()], [gone(X)], [X.clone()]),
    "sgd_ buffer": lambda: sgd([X.clone()], [X], [gone(X)]),
    "sgd_ half a parameter": lambda: sgd([gone(X, 8)], [X], [X.clone()]),
    "sgd_ master": lambda: sgd([X.half()], [X.half()], [X.clone()], [gone(X)]),
    "sgd_ found_inf": lambda: sgd([X.clone()], [X], [X.clone()], found_inf=gone(torch.zeros(()))),
    "lars_ norms": lambda: lars([X.clone()], [X], [X + 1], gone(tables(1)[0]), tables(1)[1]),
    "lars_ settings": lambda: lars([X.clone()], [X], [X + 1], tables(1)[0], gone(tables(1)[1])),
    "lamb_ moment": lambda: lamb([X.clone()], [X], [X + 1], [gone(X)]),
    "lamb_ step": lambda: lamb([X.clone()], [X], [X + 1], [X + 2], [gone(torch.zeros(()))]),
    "global_norm": lambda: ops.global_norm([X, gone(X)]),
    "global_norm of a view": lambda: ops.global_norm([view_gone(torch.rand(9)[5:])]),
    "global_norm with gaps": lambda: ops.global_norm([view_gone(torch.rand(4, 6)[:, ::2], 90)]),
    "clip_factor": lambda: ops.clip_factor([X], 1.0, eps=0.0, scale=gone(torch.ones(()))),
    "ghost_norm x": lambda: norm(gone(X)),
    "ghost_norm weight": lambda: ops.ghost_norm(X, gone(ROW), None, None, 0, 1, 2, 2, 1e-5, False),
    "ghost_norm residual": lambda: ops.ghost_norm(X, None, None, gone(X), 0, 1, 2, 2, 1e-5, False),
    "ghost_norm_backward grad": lambda: ops.ghost_norm_backward(
        gone(X), X, None, torch.rand(2, 2, 3), NO_MASK, 0, 1, 2, 2, 1e-5, False
    ),
    "ghost_norm_backward statistics": lambda: ops.ghost_norm_backward(
        X, X, None, gone(torch.rand(2, 2, 3)), NO_MASK, 0, 1, 2, 2, 1e-5, False
    ),
    "norm_moments": lambda: ops.norm_moments(X, gone(ROW)),
    "norm_apply": lambda: ops.norm_apply(X, gone(torch.rand(3, 3)), None, False),
    "norm_gradient_sums": lambda: ops.norm_gradient_sums(gone(X), X, NO_MASK, X[:2].clone(), 0),
    "norm_gradient": lambda: ops.norm_gradient(
        X, X, gone(torch.zeros(8, dtype=torch.uint8)), torch.rand(6, 3), 0, False
    ),
    "hadamard": lambda: ops.hadamard(gone(X), 4),
    "sum_shards shard": lambda: ops.sum_shards([X, gone(X)], X.clone(), divisor=1, squares=False),
    "sum_shards out": lambda: ops.sum_shards([X], gone(X), divisor=1, squares=False),
}


@compiled
@pytest.mark.parametrize("name", GONE)
def test_a_storage_that_is_gone(name: str) -> None:
    assert "was it freed or resized?" in refusal(GONE[name])


META = X.to("meta")
MIXED = {
    "sgd_ gradient": lambda p: sgd([p], [META], [X.clone()]),
    "sgd_ buffer": lambda p: sgd([p], [X], [META]),
    "sgd_ found_inf": lambda p: sgd(
        [p], [X], [X.clone()], found_inf=torch.zeros((), device="meta")
    ),
    "sgd_ absent master": lambda p: sgd([p], [X], [X + 1], [torch.empty(0, device="meta")]),
    "sgd_ one of two": lambda p: sgd([p, META], [X, X], [X.clone(), X.clone()]),
    "lars_ norms": lambda p: lars([p], [X], [X + 1], tables(1)[0].to("meta"), tables(1)[1]),
    "lars_ settings": lambda p: lars([p], [X], [X + 1], tables(1)[0], tables(1)[1].to("meta")),
    "lamb_ step": lambda p: lamb([p], [X], [X + 1], [X + 2], [torch.zeros((), device="meta")]),
    "global_norm": lambda p: ops.global_norm([p, META]),
    "clip_factor": lambda p: ops.clip_factor(
        [p], 1.0, eps=0.0, scale=torch.ones((), device="meta")
    ),
    "ghost_norm": lambda p: ops.ghost_norm(p, None, None, META, 0, 1, 2, 2, 1e-5, False),
    "ghost_norm_backward": lambda p: ops.ghost_norm_backward(
        META, p, None, torch.rand(2, 2, 3), NO_MASK, 0, 1, 2, 2, 1e-5, False
    ),
    "norm_moments": lambda p: ops.norm_moments(p, ROW.to("meta")),
    "norm_apply": lambda p: ops.norm_apply(p, torch.rand(3, 3), META, False),
    "norm_gradient_sums": lambda p: ops.norm_gradient_sums(META, p, NO_MASK, X[:2].clone(), 0),
    "norm_gradient": lambda p: ops.norm_gradient(META, p, NO_MASK, torch.rand(6, 3), 0, False),
    "sum_shards shard": lambda p: ops.sum_shards([META, META], p, divisor=1, squares=False),
    "sum_shards out": lambda p: ops.sum_shards([p, p], META, divisor=1, squares=False),
}


@pytest.mark.parametrize("name", MIXED)
def test_a_meta_tensor_among_others(name: str) -> None:
    with pytest.raises(RuntimeError, match="all must be on one device"):
        MIXED[name](X.clone())


def test_meta_tensors_alone_are_traced() -> None:
    lars([META], [META], [META], tables(1)[0].to("meta"), tables(1)[1])
    lars([META], [META], [META], *(table.to("meta") for table in tables(1)))
    assert ops.global_norm([META]).device.type == "meta"
    assert norm(META)[0].shape == X.shape


def shared() -> tuple[Tensor, Tensor]:
    memory = torch.rand(16)
    return memory[:12].view(4, 3), memory[4:].view(4, 3)


OVERLAP = {
    "an expanded parameter": lambda: sgd([torch.ones(3).expand(4, 3)], [X], [X.clone()]),
    "a strided parameter": lambda: sgd(
        [torch.rand(9).as_strided((4, 3), (1, 1))], [X], [X.clone()]
    ),
    "windows": lambda: sgd([torch.rand(6).unfold(0, 3, 1)], [X], [X.clone()]),
    "an expanded buffer": lambda: sgd([X.clone()], [X], [torch.ones(4, 1).expand(4, 3)]),
    "parameters": lambda: sgd([*shared()], [X, X], [X.clone(), X.clone()]),
    "a parameter twice": lambda: sgd([X] * 2, [X + 1] * 2, [X.clone(), X.clone()]),
    "a buffer twice": lambda: sgd([X.clone(), X.clone()], [X, X], [X + 1] * 2),
    "parameter and gradient": lambda: sgd([X], [X], [X.clone()]),
    "parameter and buffer": lambda: lars([X], [X + 1], [X]),
    "the moments": lambda: lamb([X.clone()], [X], *[[X + 1]] * 2),
    "a step twice": lambda: lamb(*lists(), [torch.zeros(())] * 2),
    "a step and found_inf": lambda: (lambda s: lamb(*lists(1), [s], found_inf=s))(torch.zeros(())),
    "norms and settings": lambda: lars(*lists(1, 1), *[tables(1)[1]] * 2),
    "out beside its shard": lambda: (
        lambda pair: ops.sum_shards([pair[0], X], pair[1], divisor=1, squares=False)
    )(shared()),
}


@compiled
@pytest.mark.parametrize("name", OVERLAP)
def test_writes_that_meet_other_tensors(name: str) -> None:
    said = refusal(OVERLAP[name])
    assert "largebatch::" in said
    assert "memory" in said


@compiled
def test_what_is_read_may_share_memory_and_views_side_by_side_may_be_written() -> None:
    grad = torch.ones(1).expand(4, 3)
    memory = torch.rand(2, 4, 3)
    want = memory - 0.1
    sgd([*memory], [grad, grad], [torch.zeros(4, 3), torch.zeros(4, 3)])
    torch.testing.assert_close(memory, want)
    sides = torch.rand(4, 6)  # between each other's elements
    sgd([sides[:, :3], sides[:, 3:]], [grad, grad], [torch.zeros(4, 3), torch.zeros(4, 3)])
    shards = [torch.ones(5), torch.ones(5)]
    ops.sum_shards([*shards, shards[1]], shards[0], divisor=1, squares=False)
    assert shards[0].tolist() == [3.0] * 5


STEPS = {
    "sgd_": (sgd, 1),
    "lars_": (lars, 1),
    "lamb_": (lamb, 2),
}


@pytest.mark.parametrize("name", STEPS)
def test_inference_tensors_change_in_inference_mode_alone(name: str) -> None:
    step, moments = STEPS[name]
    for place in (0, 2):
        given = lists(moments=moments)
        with torch.inference_mode():
            given[place][1] = given[place][1].clone()
        before = [[tensor.clone() for tensor in each] for each in given]
        with pytest.raises(RuntimeError, match="inference"):
            step(*given)
        for each, old in zip(given, before, strict=True):
            assert all(map(torch.equal, each, old))
        with torch.inference_mode():
            step(*given)
        assert not torch.equal(given[0][1], before[0][1])


@pytest.mark.parametrize("name", STEPS)
def test_what_requires_grad_changes_under_no_grad_alone(name: str) -> None:
    step, moments = STEPS[name]
    for place in (0, 1, 2):
        given = lists(moments=moments)
        given[place][1].requires_grad_()
        before = given[0][1].detach().clone()
        with pytest.raises(RuntimeError, match="no_grad"):
            step(*given)
        assert torch.equal(given[0][1], before)
        with torch.no_grad():
            step(*given)
        assert not torch.equal(given[0][1], before)


@pytest.mark.parametrize("name", STEPS)
def test_autograd_counts_the_change(name: str) -> None:
    step, moments = STEPS[name]
    given = lists(moments=moments)
    weight = given[0][1].requires_grad_()
    loss = weight.square().sum()
    with torch.no_grad():
        step(*given)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_skipped_step_leaves_a_parameter_that_is_not_its_masters_rounding() -> None:
    for run in (ops.sgd_, _ops.reference_sgd_):
        param, master, buffer = X.half(), X + 0.5, torch.ones_like(X)
        option = {**SGD, "grad_factor": None, "found_inf": torch.ones(())}
        run([param], [X.half()], [buffer], [master], **option)
        assert torch.equal(param, X.half())
        assert torch.equal(master, X + 0.5)


@pytest.mark.parametrize("stage", [1, 2])
def test_sums_leave_the_ratio_alone(stage: int) -> None:
    for name, count in (("lars_", 1), ("lamb_", 2)):
        for run in (getattr(ops, name), getattr(_ops, f"reference_{name}")):
            norms, settings = tables(2)
            norms += 7.0
            more = [[torch.zeros(()), torch.zeros(())]] if name == "lamb_" else []
            option = {**FACTORS, **(LAMB if name == "lamb_" else LARS), "stage": stage}
            run(*lists(moments=count), [], *more, norms, settings, **option)
            assert torch.equal(norms[:, 2] == 7.0, torch.full((2,), stage == 1))
            assert torch.equal(norms[:, 0] == 7.0, torch.full((2,), stage == 2))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64])
def test_a_divisor_beyond_the_shards_type(dtype: torch.dtype) -> None:
    shards = [torch.tensor([100, 3, 0], dtype=dtype)] * 2
    for run in (ops.sum_shards, _ops.reference_sum_shards):
        for divisor in (448, 2**40):
            out = torch.ones(3, dtype=dtype)
            run([each.clone() for each in shards], out, divisor=divisor, squares=False)
            assert out.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "call",
    [
        lambda: _ops.reference_lars_(
            *lists(moments=1), [], *tables(2), **{**FACTORS, **LARS, "stage": -1}
        ),
        lambda: _ops.reference_sgd_(*lists(moments=0), [], [], **FACTORS, **SGD),
        lambda: _ops.reference_sgd_(*lists(3, 0), lists(2)[0], **FACTORS, **SGD),
        lambda: _ops.reference_sum_shards([X], X.clone(), divisor=0, squares=False),
        lambda: _ops.reference_ghost_norm(X, None, None, None, 0, 1, 0, 2**20, 1e-5, False),
        lambda: _ops.reference_ghost_norm(X, None, None, None, 0, 1, -1, 1, 1e-5, False),
        lambda: norm(META, 2, 2**40),
        lambda: _ops.reference_hadamard(X, 0),
    ],
)
def test_the_references_refuse_too(call: Callable[[], Any]) -> None:
    with pytest.raises((ValueError, TypeError, IndexError)):
        call()
