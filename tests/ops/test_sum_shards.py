"""The operator that adds shards: compiled against reference on every type, squares, refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from largebatch import _ops

WHOLE = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
FLOATING = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
PAIRS = [(dtype, dtype) for dtype in (*FLOATING, *WHOLE, torch.bool)]
PAIRS += [(torch.float32, torch.float16), (torch.float32, torch.bfloat16)]
compiled = pytest.mark.skipif(_ops.face() == "reference", reason="the compiled ops are absent")


def draw(dtype: torch.dtype, count: int, numel: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool or not dtype.is_floating_point:
        high = 2 if dtype == torch.bool else 128
        numbers = torch.randint(0, high, (count, numel), generator=generator)
        return list(numbers.to(dtype) if dtype in (torch.bool, torch.uint8)
                    else (numbers - 64).to(dtype))  # fmt: skip
    return list(torch.randn(count, numel, generator=generator, dtype=torch.float64).to(dtype))


@compiled
@settings(max_examples=150, deadline=None)
@given(
    pair=st.sampled_from(PAIRS),
    count=st.integers(1, 9),
    numel=st.one_of(st.integers(0, 70), st.sampled_from([1023, 1024, 1025, 5000])),
    divisor=st.sampled_from([1, 3, 8]),
    place=st.integers(-1, 8),
    seed=st.integers(0, 2**31),
)
def test_the_kernel_has_the_bits_of_the_reference(pair, count, numel, divisor, place, seed):
    shards = draw(pair[0], count, numel, seed)
    copies = [shard.clone() for shard in shards]
    in_place = pair[0] == pair[1] and 0 <= place < count
    out = shards[place] if in_place else torch.empty(numel, dtype=pair[1])
    want = copies[place] if in_place else torch.empty(numel, dtype=pair[1])
    found = _ops.sum_shards(shards, out, divisor=divisor, squares=True)
    expected = _ops.reference_sum_shards(
        [c.clone() for c in copies], want, divisor=divisor, squares=True
    )
    assert torch.equal(out, want)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("dtype", FLOATING)
def test_a_sum_is_rounded_once(dtype):
    shards = draw(dtype, 7, 2000, 1)
    out = torch.empty_like(shards[0])
    _ops.sum_shards(shards, out)
    exact = torch.stack([shard.double() for shard in shards]).sum(0)
    if dtype == torch.float64:
        torch.testing.assert_close(out, exact, rtol=1e-15, atol=1e-15)
    else:
        assert torch.equal(out, exact.to(dtype))


def test_whole_numbers_wrap_and_are_cut_towards_zero():
    out = torch.empty(3, dtype=torch.int8)
    _ops.sum_shards([torch.tensor([100, -7, 7], dtype=torch.int8)] * 2, out, divisor=3)
    assert out.tolist() == [-18, -4, 4]  # 200 wraps to -56


@pytest.mark.parametrize("divisor", [1, 4])
def test_squares_are_those_of_all_shards_and_of_the_result(divisor):
    shards = draw(torch.float32, 4, 3001, 2)
    expected = sum(shard.double().square().sum() for shard in shards)
    out = torch.empty(3001, dtype=torch.bfloat16)
    before, after = _ops.sum_shards(shards, out, divisor=divisor, squares=True)
    torch.testing.assert_close(before, expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(after, out.double().square().sum(), rtol=1e-13, atol=0)
    assert _ops.sum_shards(shards, out).tolist() == [0.0, 0.0]


@compiled
def test_wrong_arguments_are_refused():
    ones = torch.ones(4)
    for shards, out in (
        ([], ones),
        ([ones, torch.ones(5)], ones.clone()),
        ([ones, ones.double()], ones.clone()),
        ([ones], torch.ones(4, dtype=torch.float64)),
        ([torch.ones(4, 2)[:, 0]], ones.clone()),
        ([ones.to(torch.complex64)], ones.to(torch.complex64)),
    ):
        with pytest.raises((RuntimeError, ValueError, IndexError)):
            torch.ops.largebatch.sum_shards(shards, out, divisor=1, squares=False)


def test_opcheck():
    shards = [torch.randn(6) for _ in range(3)]
    torch.library.opcheck(
        torch.ops.largebatch.sum_shards.default,
        (shards, torch.empty(6)),
        {"divisor": 2, "squares": True},
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("numel", [0, 1, 4096, 100_003])
def test_cuda_has_the_bits_of_the_reference(pair, numel):
    for offset in (0, 1):  # aligned, and not
        shards = [t.cuda() for t in draw(pair[0], 5, numel + offset, 3)]
        shards = [shard[offset:] for shard in shards]
        out = torch.empty(numel, dtype=pair[1], device="cuda")
        found = _ops.sum_shards(shards, out, divisor=3, squares=True)
        want = torch.empty(numel, dtype=pair[1])
        expected = _ops.reference_sum_shards(
            [shard.cpu() for shard in shards], want, divisor=3, squares=True
        )
        assert torch.equal(out.cpu(), want)
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-12, atol=0)
