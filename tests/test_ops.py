"""The operators against their float64 references, on every layout and type, and their registration.

This file needs torch, pytest and hypothesis alone: tests/check_wheel.py runs it against an
installed wheel under several versions of torch.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import largebatch
from largebatch import _ops

PACKAGE = Path(largebatch.__file__).parent
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
compiled = pytest.mark.skipif(_ops.face() == "reference", reason="the compiled ops are absent")

# Layouts under test: how to make a tensor of a shape that is laid out in memory in that way.
LAYOUTS = ("contiguous", "channels_last", "transposed", "gaps")


def laid_out(shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> Tensor:
    values = torch.randn(shape, dtype=torch.float64).to(dtype)
    if layout == "channels_last" and len(shape) == 4:
        return values.to(memory_format=torch.channels_last)
    if layout == "transposed" and len(shape) >= 2:
        return values.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "gaps" and shape:
        wide = torch.zeros(*shape[:-1], 2 * shape[-1] + 1, dtype=dtype)
        view = wide[..., : 2 * shape[-1] : 2]
        view.copy_(values)
        return view
    return values


shapes = st.one_of(
    st.just(()),
    st.tuples(st.integers(0, 70)),
    st.tuples(st.integers(1, 40), st.integers(0, 40)),
    st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.sampled_from([16383, 16384, 16385, 40000])),
)
tensors = st.lists(
    st.tuples(
        shapes,
        st.sampled_from(DTYPES),
        st.tuples(*[st.sampled_from(LAYOUTS)] * 3),
    ),
    min_size=1,
    max_size=6,
)
options = st.fixed_dictionaries(
    {
        "lr": st.floats(0.0, 2.0),
        "momentum": st.sampled_from([0.0, 0.5, 0.9]),
        "dampening": st.sampled_from([0.0, 0.3, 0.9]),
        "weight_decay": st.sampled_from([0.0, 0.01]),
        "decoupled": st.booleans(),
        "nesterov": st.booleans(),
        "maximize": st.booleans(),
        "lr_inside_momentum": st.booleans(),
        "buffer_factor": st.sampled_from([1.0, 0.5, 3.0]),
        "grad_factor": st.sampled_from([None, 0.25, 1.0]),
        "found_inf": st.sampled_from([None, 0.0, 1.0]),
    }
)

# Three roundings of the type of the parameter, relative to numbers of about 10.
TOLERANCE = {
    torch.float64: 1e-13,
    torch.float32: 1e-5,
    torch.float16: 2e-2,
    torch.bfloat16: 2e-1,
}


def sgd_arguments(option: dict[str, Any]) -> dict[str, Any]:
    scalars = {
        key: None if option[key] is None else torch.tensor(option[key])
        for key in ("grad_factor", "found_inf")
    }
    return {**option, **scalars}


@settings(max_examples=150, deadline=None)
@given(
    specs=tensors,
    option=options,
    low=st.booleans(),
    has_masters=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_sgd_agrees_with_the_reference_in_float64(
    specs: list[Any], option: dict[str, Any], low: bool, has_masters: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    params = [laid_out(shape, layouts[0], dtype) for shape, dtype, layouts in specs]
    grads = [laid_out(shape, layouts[1], dtype) for shape, dtype, layouts in specs]
    buffers = []
    if option["momentum"] != 0.0:
        types = [_ops.accumulate_dtype(dtype) for _, dtype, _ in specs]
        types = [torch.bfloat16 if low and t == torch.float32 else t for t in types]
        buffers = [laid_out(s[0], s[2][2], t) for s, t in zip(specs, types, strict=True)]
    masters = []
    if has_masters:
        masters = [
            laid_out(shape, layouts[1], torch.float32).copy_(param)
            if dtype in (torch.float16, torch.bfloat16)
            else torch.empty(0)
            for (shape, dtype, layouts), param in zip(specs, params, strict=True)
        ]
    arguments = sgd_arguments(option)
    wide = [[t.double().clone() for t in group] for group in (params, grads, buffers)]
    strides = [t.stride() for t in params + buffers + masters]
    _ops.sgd_(params, grads, buffers, masters, **arguments)
    _ops.reference_sgd_(*wide, **arguments)
    assert [t.stride() for t in params + buffers + masters] == strides
    for got, want in zip(params, wide[0], strict=True):
        torch.testing.assert_close(got.double(), want, rtol=0, atol=TOLERANCE[got.dtype])
    for got, want in zip(buffers, wide[2], strict=True):
        atol = TOLERANCE[got.dtype]
        torch.testing.assert_close(got.double(), want, rtol=0, atol=atol)
    for master, got, want in zip(masters, params, wide[0], strict=bool(masters)):
        if master.numel() > 0:
            torch.testing.assert_close(master.double(), want, rtol=0, atol=1e-5)
            assert torch.equal(master.to(got.dtype), got)


@compiled
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("buffer_dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sgd_has_the_bits_of_the_reference(
    dtype: torch.dtype, buffer_dtype: torch.dtype | None, decoupled: bool
) -> None:
    # Same formula, same order, no fused multiply-add: also the vectors and their tails agree.
    torch.manual_seed(0)
    sizes = (1, 7, 33, 16384 + 5, 50000)
    params, grads = ([torch.randn(n).to(dtype) for n in sizes] for _ in range(2))
    wide = _ops.accumulate_dtype(dtype)
    kept = buffer_dtype if buffer_dtype is not None and wide == torch.float32 else wide
    buffers = [torch.randn(n).to(kept) for n in sizes]
    has_masters = wide != dtype
    masters = [p.float() + 1e-4 if has_masters and p.numel() > 7 else p[:0] for p in params]
    copies = [[t.clone() for t in group] for group in (params, grads, buffers, masters)]
    arguments = sgd_arguments(
        {
            "lr": 0.25,
            "momentum": 0.5,
            "dampening": 0.0,
            "weight_decay": 0.125,
            "decoupled": decoupled,
            "nesterov": True,
            "maximize": False,
            "lr_inside_momentum": False,
            "buffer_factor": 1.0,
            "grad_factor": 0.5,
            "found_inf": 0.0,
        }
    )
    _ops.sgd_(params, grads, buffers, masters, **arguments)
    _ops.reference_sgd_(*copies, **arguments)
    wanted = copies[0] + copies[2] + copies[3]
    for got, want in zip(params + buffers + masters, wanted, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_found_inf_changes_nothing(dtype: torch.dtype) -> None:
    param, buffer = torch.randn(100).to(dtype), torch.randn(100).to(_ops.accumulate_dtype(dtype))
    before = param.clone(), buffer.clone()
    grad = torch.full((100,), math.nan).to(dtype)
    _ops.sgd_([param], [grad], [buffer], lr=0.1, momentum=0.9, found_inf=torch.ones(()))
    assert torch.equal(param, before[0])
    assert torch.equal(buffer, before[1])


@settings(max_examples=60, deadline=None)
@given(specs=tensors, seed=st.integers(0, 2**31))
def test_norm_agrees_with_the_reference(specs: list[Any], seed: int) -> None:
    torch.manual_seed(seed)
    values = [laid_out(shape, layouts[0], dtype) for shape, dtype, layouts in specs]
    squares = torch.cat([t.double().reshape(-1) for t in values]).square()
    want = math.sqrt(math.fsum(squares.tolist()))  # torch's own sums round too much to judge by
    norm = _ops.global_norm(values)
    wide = any(t.dtype == torch.float64 for t in values)
    assert norm.dtype == (torch.float64 if wide else torch.float32)
    assert norm.shape == ()
    assert norm.item() == pytest.approx(want, rel=1e-14 if wide else 6e-8, abs=0)
    for max_norm in (0.1, 1e9):
        same, factor = _ops.clip_factor(values, max_norm)
        assert torch.equal(same, norm)
        expected = min(1.0, max_norm / (want + 1e-6))
        assert factor.item() == pytest.approx(expected, rel=1e-13 if wide else 1e-7)


def test_bits_do_not_depend_on_the_thread_count() -> None:
    torch.manual_seed(1)
    sizes = [(300001,), (777, 33), (5,), (0,), (64, 64, 3, 3)]
    grads = [torch.randn(size) for size in sizes]
    start = [torch.randn(size) for size in sizes]
    before = torch.get_num_threads()
    seen = set()
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            params = [t.clone() for t in start]
            buffers = [torch.ones_like(t) for t in start]
            norm, factor = _ops.clip_factor(grads, 1.0)
            _ops.sgd_(params, grads, buffers, lr=0.1, momentum=0.9, grad_factor=factor)
            # Integers, because -0.0 == 0.0 and nan != nan among floats.
            bits = torch.cat([t.reshape(-1).view(torch.int32) for t in [norm, *params, *buffers]])
            seen.add(tuple(bits.tolist()))
    finally:
        torch.set_num_threads(before)
    assert len(seen) == 1


@pytest.mark.parametrize("value", [1e30, 1e-30, 6e4])
def test_norm_neither_overflows_nor_underflows(value: float) -> None:
    # Squares of these leave float32's range, or float16's, or vanish.
    dtype = torch.float16 if value == 6e4 else torch.float32
    values = [torch.full((10000,), value, dtype=dtype)]
    assert _ops.global_norm(values).item() == pytest.approx(100 * values[0][0].item(), rel=1e-6)


def test_a_nan_or_inf_reaches_norm_and_factor() -> None:
    norm, factor = _ops.clip_factor([torch.tensor([1.0, math.nan])], 1.0)
    assert math.isnan(norm.item())
    assert math.isnan(factor.item())
    norm, factor = _ops.clip_factor([torch.tensor([1.0, math.inf])], 1.0)
    assert norm.item() == math.inf
    assert factor.item() == 0.0


def test_empty_lists_and_empty_tensors() -> None:
    _ops.sgd_([], [], [], lr=0.1, momentum=0.9)
    assert _ops.global_norm([]).item() == 0.0
    norm, factor = _ops.clip_factor([], 1.0)
    assert (norm.item(), factor.item()) == (0.0, 1.0)
    nothing = torch.zeros(0, 3)
    _ops.sgd_([nothing], [nothing.clone()], [nothing.clone()], lr=0.1, momentum=0.9)
    norm, factor = _ops.clip_factor([nothing], 1.0)
    assert (norm.item(), factor.item()) == (0.0, 1.0)


@compiled
@pytest.mark.parametrize(
    ("params", "grads", "buffers", "message"),
    [
        ([torch.zeros(3)], [torch.zeros(4)], [torch.zeros(3)], "one shape"),
        ([torch.zeros(3)], [torch.zeros(3).double()], [torch.zeros(3)], "shape and one type"),
        (
            [torch.zeros(3).int()],
            [torch.zeros(3).int()],
            [torch.zeros(3)],
            "one shape and one type",
        ),
        ([torch.zeros(3)], [torch.zeros(3)], [torch.zeros(3).double()], "first moments 0"),
        ([torch.zeros(3)], [torch.zeros(3)], [], "0 momentum buffers"),
        ([torch.zeros(3)], [], [torch.zeros(3)], "0 gradients"),
    ],
)
def test_wrong_arguments_are_refused(
    params: list[Tensor], grads: list[Tensor], buffers: list[Tensor], message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        _ops.sgd_(params, grads, buffers, lr=0.1, momentum=0.9)


@compiled
def test_schemas_here_and_there_are_equal() -> None:
    for name, operator in _ops.OPERATORS.items():
        registered = str(getattr(torch.ops.largebatch, name).default._schema)
        assert registered == str(torch._C.parse_schema(f"largebatch::{operator.schema}"))


def operator_arguments(name: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    torch.manual_seed(2)
    lists = [[torch.randn(3, 4), torch.randn(5)] for _ in range(3)]
    if name == "sgd_":
        option = {
            "lr": 0.1,
            "momentum": 0.9,
            "dampening": 0.0,
            "weight_decay": 0.01,
            "decoupled": True,
            "nesterov": False,
            "maximize": False,
            "lr_inside_momentum": False,
            "buffer_factor": 1.0,
            "grad_factor": 0.5,
            "found_inf": 0.0,
        }
        lists[0][0], lists[1][0] = lists[0][0].bfloat16(), lists[1][0].bfloat16()
        return (*lists, [torch.randn(3, 4), torch.empty(0)]), sgd_arguments(option)
    if name == "global_norm":
        return (lists[0],), {}
    return (lists[0], 1.0), {"eps": 1e-6, "scale": torch.tensor(0.5)}


@pytest.mark.parametrize("name", ["sgd_", "global_norm", "clip_factor"])
def test_opcheck(name: str) -> None:
    args, kwargs = operator_arguments(name)
    torch.library.opcheck(getattr(torch.ops.largebatch, name).default, args, kwargs)


def clipped_step(params: list[Tensor], grads: list[Tensor], buffers: list[Tensor]) -> Tensor:
    norm, factor = _ops.clip_factor(grads, 0.5)
    _ops.sgd_(params, grads, buffers, lr=0.1, momentum=0.9, grad_factor=factor)
    return norm + _ops.global_norm(params)


def test_compile_traces_the_operators_whole() -> None:
    lists = [[torch.randn(3, 4), torch.randn(5)] for _ in range(3)]
    copies = [[t.clone() for t in group] for group in lists]
    want = clipped_step(*copies)
    got = torch.compile(clipped_step, fullgraph=True, backend="aot_eager")(*lists)
    assert torch.equal(got, want)
    for left, right in zip(lists[0] + lists[2], copies[0] + copies[2], strict=True):
        assert torch.equal(left, right)


def test_backends_names_every_face() -> None:
    table = _ops.backends()
    assert set(table) == set(_ops.OPERATORS)
    for faces in table.values():
        assert faces["reference"] == "yes"
        assert (faces["cpu"] == "yes") == (_ops.face() == "compiled")
        assert faces["cuda"]  # yes, or a reason


def run_python(
    code: str, face: str | None, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "LARGEBATCH_OPS"}
    environment["PYTHONPATH"] = str(folder or PACKAGE.parent)
    environment["OMP_NUM_THREADS"] = "1"
    if face is not None:
        environment["LARGEBATCH_OPS"] = face
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd="/"
    )


STEP = """
import torch
from largebatch import _ops
p = [torch.arange(6, dtype=torch.float64)]
b = [torch.zeros(6, dtype=torch.float64)]
for _ in range(3):
    norm, factor = _ops.clip_factor(p, 2.0)
    _ops.sgd_(p, [p[0].clone()], b, lr=0.1, momentum=0.9, grad_factor=factor)
print(_ops.face(), p[0].tolist())
"""


@pytest.fixture
def pure_package(tmp_path: Path) -> Path:
    """Copy what the operators need into a package without the compiled library."""
    target = tmp_path / "largebatch"
    target.mkdir()
    for name in ("__init__.py", "_errors.py", "_registry.py"):
        shutil.copy(PACKAGE / name, target)
    shutil.copytree(PACKAGE / "_ops", target / "_ops")
    return tmp_path


def test_reference_face_can_be_forced() -> None:
    done = run_python(STEP, "reference")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("reference ")
    assert "reference ops" not in done.stderr  # asked for, so nothing to say
    here = run_python(STEP, None)
    numbers = [re.findall(r"[-\d.e]+", out.split("[")[1]) for out in (done.stdout, here.stdout)]
    assert [float(x) for x in numbers[0]] == pytest.approx(
        [float(x) for x in numbers[1]], rel=1e-14
    )


def test_without_the_library_the_reference_serves_and_says_so_once(pure_package: Path) -> None:
    done = run_python(STEP, None, pure_package)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("reference ")
    assert done.stderr.count("largebatch uses its reference ops on cpu") == 1


def test_compiled_face_raises_where_it_is_absent(pure_package: Path) -> None:
    done = run_python(STEP, "compiled", pure_package)
    assert done.returncode != 0
    assert "ImportError: LARGEBATCH_OPS=compiled, but the compiled ops are absent" in done.stderr


def test_unknown_face_is_refused() -> None:
    done = run_python(STEP, "fast")
    assert done.returncode != 0
    assert "LARGEBATCH_OPS='fast': choose compiled or reference" in done.stderr


LATER = (
    "import torch; from largebatch._ops import Operator, backends, library; "
    "library.register(Operator({schema!r}, torch.clone, torch.empty_like)); "
    "print(torch.ops.largebatch.later(torch.ones(2)).sum().item(), backends()['later']['cpu'])"
)


@compiled
def test_an_operator_that_an_older_library_lacks_is_served_by_its_reference() -> None:
    done = run_python(LATER.format(schema="later(Tensor x) -> Tensor"), None)
    assert done.stdout.startswith("2.0 _C.abi3.so is older than this code; run pip"), done.stderr


@compiled
def test_a_library_with_other_arguments_is_refused() -> None:
    done = run_python(LATER.format(schema="hadamard(Tensor x) -> Tensor"), None)
    assert done.returncode != 0
    assert "ImportError: _C.abi3.so is of another version than this code (hadamard); run" in (
        done.stderr
    )


def test_import_needs_torch_alone() -> None:
    code = (
        "import sys, largebatch._ops; "
        "print(sorted({'torchvision', 'jsonargparse', 'rich', 'plotly', 'yaml'} & {*sys.modules}))"
    )
    done = run_python(code, None)
    assert done.stdout.strip() == "[]", done.stderr


@compiled
def test_no_warning_where_the_kernel_exists() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        norm = _ops.global_norm([torch.ones(4)])
    assert norm == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [3, 70, 900])
def test_cuda_agrees_with_the_reference(dtype: torch.dtype, count: int) -> None:
    torch.manual_seed(3)
    sizes = [torch.randint(0, 20000, (1,)).item() for _ in range(count)]
    lists = [[torch.randn(n, device="cuda").to(dtype) for n in sizes] for _ in range(2)]
    kept = _ops.accumulate_dtype(dtype)
    lists.append([torch.randn(n, device="cuda").to(kept) for n in sizes])
    lists.append([t.float() for t in lists[0]] if kept != dtype else [])
    # Views one element into their memory are not aligned to 16 bytes: the scalar path.
    lists = [[t[1:] if t.numel() % 2 else t for t in group] for group in lists]
    wide = [[t.double().cpu() for t in group] for group in lists]
    norm, factor = _ops.clip_factor(lists[1], 1.0)
    again, _ = _ops.clip_factor(lists[1], 1.0)
    assert torch.equal(norm, again)
    want_norm, want_factor = _ops.reference_clip_factor(wide[1], 1.0, eps=1e-6, scale=None)
    torch.testing.assert_close(norm.cpu().double(), want_norm, rtol=1e-6, atol=0)
    option = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}
    _ops.sgd_(*lists, **option, grad_factor=factor)
    _ops.reference_sgd_(
        *wide,
        **option,
        grad_factor=want_factor,
        found_inf=None,
        dampening=0.0,
        decoupled=False,
        maximize=False,
        lr_inside_momentum=False,
        buffer_factor=1.0,
    )
    for got, want in zip(lists[0], wide[0], strict=True):
        torch.testing.assert_close(got.cpu().double(), want, rtol=0, atol=TOLERANCE[dtype])
    for got, want in zip(lists[3], wide[3], strict=True):
        torch.testing.assert_close(got.cpu().double(), want, rtol=0, atol=1e-5)
