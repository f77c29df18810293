"""LARS and LAMB as operators: compiled against reference on random tensors, bits, stages."""

from __future__ import annotations

import math
import os
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from largebatch import _ops
from largebatch.optim import LAMB, LARS

compiled = pytest.mark.skipif(_ops.face() == "reference", reason="the compiled ops are absent")
KINDS = {"lars": LARS, "lamb": LAMB}


@st.composite
def tensor_sets(draw: Any) -> list[dict[str, Any]]:
    """Draw shapes from no element up, types, scales of weights and gradients, special values."""
    rows = []
    for _ in range(draw(st.integers(1, 5))):
        numel = draw(st.one_of(st.integers(0, 40), st.sampled_from([1023, 16385, 70001])))
        rows.append(
            {
                "numel": numel,
                "dtype": draw(
                    st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16])
                ),
                "weight": draw(st.sampled_from([0.0, 1e-3, 1.0, 30.0])),
                "grad": draw(st.sampled_from([0.0, 1e-3, 1.0, 30.0])),
                "special": draw(st.sampled_from([None] * 6 + [math.inf, math.nan])),
                "low": draw(st.booleans()),
            }
        )
    return rows


def tensors_of(rows: list[dict[str, Any]], seed: int) -> dict[str, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)

    def random(row: dict[str, Any], scale: float) -> Tensor:
        return scale * torch.randn(row["numel"], generator=generator, dtype=torch.float64)

    sets: dict[str, list[Tensor]] = {
        k: [] for k in ("params", "grads", "first", "second", "master")
    }
    for row in rows:
        param = random(row, row["weight"]).to(row["dtype"])
        grad = random(row, row["grad"]).to(row["dtype"])
        if row["special"] is not None and row["numel"]:
            grad[row["numel"] // 2] = row["special"]
        wide = _ops.accumulate_dtype(row["dtype"])
        moment = torch.bfloat16 if row["low"] and wide == torch.float32 else wide
        sets["params"].append(param)
        sets["grads"].append(grad)
        sets["first"].append(random(row, 0.1).to(moment))
        sets["second"].append(random(row, 0.1).square().to(moment))
        has_master = row["low"] and wide != row["dtype"]
        sets["master"].append(param.to(wide) if has_master else torch.empty(0))
    return sets


def exactly(sets: dict[str, list[Tensor]], device: str) -> dict[str, list[Tensor]]:
    return {key: [tensor.to(device, copy=True) for tensor in ts] for key, ts in sets.items()}


def settings_of(rows: list[dict[str, Any]], lr: float) -> Tensor:
    table = [[lr, 0.0 if i % 2 else 0.01, float(i % 3 != 2)] for i in range(len(rows))]
    return torch.tensor(table, dtype=torch.float64).reshape(-1, 3)


def agree(found: Tensor, expected: Tensor, row: dict[str, Any]) -> None:
    """Compare within what the arithmetic's and the storage's precision allow."""
    rounding = {torch.float64: 1e-9, torch.float32: 4e-6}[_ops.accumulate_dtype(row["dtype"])]
    rounding = max(rounding, 1.01 * torch.finfo(found.dtype).eps)
    scale = expected.double().abs()
    scale = float(scale[scale.isfinite()].max()) if scale.isfinite().any() else 1.0
    torch.testing.assert_close(
        found.double(), expected.double(), rtol=rounding, atol=rounding * scale, equal_nan=True
    )


LARS_SWITCHES = st.fixed_dictionaries(
    {
        "momentum": st.sampled_from([0.0, 0.9]),
        "eps": st.sampled_from([0.0, 1e-8]),
        **{
            key: st.booleans()
            for key in ("joint", "lr_inside", "ratio_inside", "maximize", "clip_ratio")
        },
        "zero_is_raw": st.booleans(),
    }
)


def check_lars(
    rows: Any, switches: dict[str, Any], seed: int, nesterov: bool, device: str = "cpu"
) -> None:
    start = tensors_of(rows, seed)
    results = []
    for reference, where in ((False, device), (True, "cpu")):
        sets = exactly(start, where)
        norms = torch.zeros((len(rows), 3), dtype=torch.float64, device=where)
        _ops.lars_(
            sets["params"],
            sets["grads"],
            sets["first"] if switches["momentum"] else [],
            sets["master"],
            norms,
            settings_of(rows, 0.5),
            grad_factor=torch.tensor(0.5, device=where),
            nesterov=nesterov and switches["momentum"] > 0.0,
            reference=reference,
            **switches,
        )
        results.append((sets, norms))
    compare(results, rows, ("params", "first", "master"), start)


def check_lamb(rows: Any, switches: dict[str, Any], seed: int, device: str = "cpu") -> None:
    start = tensors_of(rows, seed)
    results = []
    for reference, where in ((False, device), (True, "cpu")):
        sets = exactly(start, where)
        norms = torch.zeros((len(rows), 3), dtype=torch.float64, device=where)
        steps = [torch.tensor(float(index), device=where) for index in range(len(rows))]
        _ops.lamb_(
            sets["params"],
            sets["grads"],
            sets["first"],
            sets["second"],
            sets["master"],
            steps,
            norms,
            settings_of(rows, 0.01),
            grad_factor=torch.tensor(0.5, device=where),
            reference=reference,
            **switches,
        )
        assert [float(step) for step in steps] == [index + 1.0 for index in range(len(rows))]
        results.append((sets, norms))
    compare(results, rows, ("params", "first", "second", "master"), start)


def compare(results: Any, rows: Any, keys: tuple[str, ...], start: Any) -> None:
    (found, found_norms), (expected, expected_norms) = results
    found, found_norms = exactly(found, "cpu"), found_norms.cpu()
    torch.testing.assert_close(found_norms, expected_norms, rtol=2e-5, atol=1e-12, equal_nan=True)
    for key in keys:
        for index, row in enumerate(rows):
            agree(found[key][index], expected[key][index], row)
    for index in range(len(rows)):
        assert torch.equal(found["grads"][index].nan_to_num(), start["grads"][index].nan_to_num())


@compiled
@settings(max_examples=60, deadline=None)
@given(tensor_sets(), LARS_SWITCHES, st.integers(0, 2**31), st.booleans())
def test_lars_kernel_equals_its_reference(rows, switches, seed, nesterov):
    check_lars(rows, switches, seed, nesterov)


LAMB_SWITCHES = st.fixed_dictionaries(
    {
        "beta1": st.sampled_from([0.0, 0.9]),
        "bias_correction": st.sampled_from(["none", "moments", "rate"]),
        "grad_averaging": st.booleans(),
        "maximize": st.booleans(),
        "min_ratio": st.sampled_from([0.0, 0.01]),
        "max_ratio": st.sampled_from([10.0, math.inf]),
    }
)


@compiled
@settings(max_examples=60, deadline=None)
@given(tensor_sets(), LAMB_SWITCHES, st.integers(0, 2**31))
def test_lamb_kernel_equals_its_reference(rows, switches, seed):
    check_lamb(rows, switches, seed)


@compiled
@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=1000 if "LARGEBATCH_LONG_TESTS" in os.environ else 100, deadline=None)
@given(tensor_sets(), LARS_SWITCHES, LAMB_SWITCHES, st.integers(0, 2**31), st.booleans())
def test_hundreds_of_random_sets(rows, lars, lamb, seed, nesterov):
    if seed % 100 == 0:  # the largest size now and then: it takes seconds
        rows = [{**rows[0], "numel": 3_000_000}]
    check_lars(rows, lars, seed, nesterov)
    check_lamb(rows, lamb, seed)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.timeout(1200)
@settings(max_examples=300, deadline=None)
@given(tensor_sets(), LARS_SWITCHES, LAMB_SWITCHES, st.integers(0, 2**31), st.booleans())
def test_cuda_kernels_equal_the_reference(rows, lars, lamb, seed, nesterov):
    if seed % 50 == 0:
        rows = [{**rows[0], "numel": 3_000_000}]
    if seed % 20 == 0:
        rows = rows * 80  # more tensors than one launch takes
    check_lars(rows, lars, seed, nesterov, "cuda")
    check_lamb(rows, lamb, seed, "cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS.values())
def test_a_step_on_cuda_is_few_launches_and_waits_for_nothing(kind):
    """161 tensors in three types under a loss scale: two launches a type, the same bits."""
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        types = (torch.float32, torch.float16, torch.bfloat16)
        params = [
            nn.Parameter(torch.randn(20 + 997 * i, device="cuda", dtype=types[i % 3]))
            for i in range(161)
        ]
        optimizer = kind(params, torch.tensor(0.1, device="cuda"), weight_decay=0.01)
        optimizer.grad_scale = torch.tensor(8.0, device="cuda")
        optimizer.found_inf = torch.tensor(0.0, device="cuda")
        for step in range(3):
            for param in params:
                param.grad = torch.sin(param.detach() * 3)
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error" if step else "default")
            try:
                with torch.profiler.profile(
                    activities=[torch.profiler.ProfilerActivity.CUDA]
                ) as profile:
                    optimizer.step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
            torch.cuda.synchronize()
        launches = [e for e in profile.events() if "largebatch" in e.name]
        assert 1 <= len(launches) <= 6, [e.name for e in profile.events()]
        results.append([param.detach().clone() for param in params])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def arguments(name: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    torch.manual_seed(2)
    lists = [[torch.randn(3, 4), torch.randn(5)] for _ in range(4)]
    table = torch.tensor([[0.1, 0.01, 1.0], [0.1, 0.0, 0.0]], dtype=torch.float64)
    norms = torch.zeros((2, 3), dtype=torch.float64)
    factors = {"lr_factor": torch.tensor(0.5), "grad_factor": torch.tensor(0.5)}
    factors["found_inf"] = torch.tensor(0.0)
    if name == "lars_":
        switches = {"momentum": 0.9, "trust_coefficient": 0.001, "eps": 0.0, "joint": False}
        switches |= {"lr_inside": True, "ratio_inside": True, "nesterov": False, "maximize": False}
        switches |= {"clip_ratio": False, "zero_is_raw": False, "stage": 0}
        return (*lists[:3], [], norms, table), {**factors, **switches}
    lists[3] = [tensor.square() for tensor in lists[3]]
    steps = [torch.zeros(()), torch.zeros(())]
    switches = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-6, "bias_correction": 1}
    switches |= {"grad_averaging": True, "maximize": False, "min_ratio": 0.0, "max_ratio": 10.0}
    return (*lists, [], steps, norms, table), {**factors, **switches, "stage": 0}


@pytest.mark.parametrize("name", ["lars_", "lamb_"])
def test_opcheck(name):
    args, kwargs = arguments(name)
    torch.library.opcheck(getattr(torch.ops.largebatch, name).default, args, kwargs)


@compiled
@pytest.mark.parametrize("kind", KINDS.values())
def test_threads_do_not_change_a_bit(kind):
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        params = [nn.Parameter(torch.randn(n)) for n in (3, 40_000, 700_001, 5)]
        optimizer = kind(params, 0.1, weight_decay=0.01)
        for _ in range(3):
            for param in params:
                param.grad = torch.sin(param.detach() * 3)
            optimizer.step()
        results.append([param.detach().clone() for param in params])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@compiled
def test_sums_and_update_in_two_calls_are_one():
    for name in ("lars_", "lamb_"):
        whole, kwargs = arguments(name)
        parts, _ = arguments(name)
        operator = getattr(torch.ops.largebatch, name)
        operator(*whole, **kwargs)
        operator(*parts, **{**kwargs, "stage": 1})
        operator(*parts, **{**kwargs, "stage": 2})
        for a, b in zip(whole[0] + [whole[-2]], parts[0] + [parts[-2]], strict=True):
            assert torch.equal(a, b)
