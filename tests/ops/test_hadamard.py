"""The Hadamard operator against the explicit matrix in float64."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from largebatch import _ops

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
compiled = pytest.mark.skipif(_ops.face() == "reference", reason="the compiled ops are absent")
# Features and outputs: equal, few or many on either side, powers of two and not.
SIZES = [(1, 1), (2, 2), (3, 5), (5, 100), (48, 40), (33, 64), (64, 10), (100, 300), (512, 10),
         (640, 1000), (2048, 1000), (1025, 1030)]  # fmt: skip


def hadamard_matrix(rows: int, columns: int) -> Tensor:
    """Return Sylvester's matrix by its recursion [[H, H], [H, -H]], cut to size."""
    h = torch.ones(1, 1, dtype=torch.float64)
    while len(h) < max(rows, columns):
        h = torch.cat((torch.cat((h, h), 1), torch.cat((h, -h), 1)))
    return h[:rows, :columns]


@pytest.mark.parametrize(("features", "outputs"), SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_matrix(features: int, outputs: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, features, dtype=torch.float64).to(dtype)
    want = x.double() @ hadamard_matrix(outputs, features).T
    # A rounding of the result's type, and of float32 in each of the sums.
    bound = {torch.float64: 1e-13, torch.float32: 1e-6, torch.float16: 6e-4, torch.bfloat16: 5e-3}
    atol = bound[dtype] * math.sqrt(features) * 5
    for call in (_ops.hadamard, _ops.reference_hadamard):
        y = call(x, outputs)
        assert y.dtype == dtype
        torch.testing.assert_close(y.double(), want, rtol=0, atol=atol)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(0, 4), max_size=2),
    features=st.integers(1, 200),
    outputs=st.integers(1, 200),
    gaps=st.booleans(),
)
def test_any_shape_and_layout(shape: list[int], features: int, outputs: int, gaps: bool) -> None:
    x = torch.randn(*shape, features, 2, dtype=torch.float64)[..., 0]
    x = x if gaps else x.contiguous()
    y = _ops.hadamard(x, outputs)
    assert y.shape == (*shape, outputs)
    assert y.is_contiguous()
    torch.testing.assert_close(y, x @ hadamard_matrix(outputs, features).T)


@pytest.mark.parametrize(("features", "outputs"), [(6, 4), (4, 6), (5, 20), (20, 3)])
def test_derivatives_of_first_and_second_order(features: int, outputs: int) -> None:
    x = torch.randn(2, features, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(_ops.hadamard, (x, outputs))
    assert torch.autograd.gradgradcheck(_ops.hadamard, (x, outputs))


@pytest.mark.parametrize(("features", "outputs"), [(6, 4), (4, 6)])
def test_derivatives_in_every_mode(features: int, outputs: int) -> None:
    torch.manual_seed(0)
    x, v = torch.randn(2, 3, features, dtype=torch.float64)
    h = hadamard_matrix(outputs, features)
    matrix = torch.einsum("oi,ns->nosi", h, torch.eye(3, dtype=torch.float64))

    def call(x: Tensor) -> Tensor:
        return _ops.hadamard(x, outputs)

    def cubes(x: Tensor) -> Tensor:
        return call(x).pow(3).sum()

    torch.testing.assert_close(torch.func.jvp(call, (x,), (v,))[1], v @ h.T)
    torch.testing.assert_close(torch.func.jacfwd(call)(x), matrix)
    torch.testing.assert_close(torch.func.jacrev(call)(x), matrix)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # there is a rule for vmap: no loop
        by_row = torch.func.vmap(torch.func.grad(cubes))(x)
        columns = torch.func.vmap(call, in_dims=1)(x.T.contiguous())
    torch.testing.assert_close(by_row, 3 * (x @ h.T).square() @ h)
    torch.testing.assert_close(columns, x @ h.T)
    curvature = torch.autograd.functional.hessian(cubes, x)
    torch.testing.assert_close(torch.func.hessian(cubes)(x), curvature)
    torch.testing.assert_close(torch.func.jacrev(torch.func.jacrev(cubes))(x), curvature)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(20, 7), (7, 20)])
def test_registration(sizes: tuple[int, int], dtype: torch.dtype) -> None:
    x = torch.randn(3, sizes[0]).to(dtype).requires_grad_()
    torch.library.opcheck(torch.ops.largebatch.hadamard, (x, sizes[1]))


@compiled
def test_bits_do_not_depend_on_threads_or_on_other_rows() -> None:
    x = torch.randn(300, 1000)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(_ops.hadamard(x, 200))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(y, found[0]) for y in found)
    assert torch.equal(_ops.hadamard(x[7], 200), found[0][7])


@compiled
@pytest.mark.parametrize("x", [torch.ones(2, 0), torch.ones(()), torch.ones(2, 3).int()])
def test_mistakes(x: Tensor) -> None:
    with pytest.raises(RuntimeError, match=r"largebatch::hadamard: x (has|must)"):
        _ops.hadamard(x, 2)
    with pytest.raises(RuntimeError, match="0 outputs"):
        _ops.hadamard(torch.ones(2, 3), 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("features", "outputs"), [*SIZES, (20000, 17000)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_agrees_with_the_reference(features: int, outputs: int, dtype: torch.dtype) -> None:
    x = torch.randn(5, features, device="cuda").to(dtype)
    y = _ops.hadamard(x, outputs)
    want = _ops.reference_hadamard(x.double().cpu(), outputs)
    tolerance = {torch.float64: 1e-11, torch.float32: 1e-3, torch.float16: 0.5, torch.bfloat16: 4}
    torch.testing.assert_close(y.cpu().double(), want, rtol=0, atol=tolerance[dtype])
    assert torch.equal(y, _ops.hadamard(x, outputs))
