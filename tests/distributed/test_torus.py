"""The torus all-reduce on real gloo ranks: bits, bounds, counts, types, errors; both faces."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from largebatch.distributed import algorithms, torus_face
from largebatch.distributed.cost_model import CostModel, Link
from largebatch.distributed.preference import Preference
from largebatch.distributed.statistics import stats
from largebatch.distributed.topology import Topology
from largebatch.distributed.torus import Torus, sent

WHOLE = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
FLOATING = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
UNSIGNED = [torch.uint16, torch.uint32, torch.uint64]
COMPLEX = [torch.complex64, torch.complex128]

# Ranks and a grid of rows x columns forced on one host, remainders among them.
GRIDS = [(2, "2x1"), (3, "3x1"), (4, "2x2"), (5, "2x2"), (6, "2x3"), (6, "3x2"), (7, "2x3"),
         (8, "4x2"), (9, "3x3")]  # fmt: skip
# Hosts of ranks, in order, interleaved and of unequal size.
HOSTS = ["aaab", "abab", "aaabb", "abcabc", "aaaabbb", "aabbbccdd"]


def values(size: int, numel: int, dtype: torch.dtype, seed: int, whole: bool) -> list[torch.Tensor]:
    """Return a tensor a rank; ``whole`` ones have sums that every type holds exactly."""
    found = []
    for rank in range(size):
        generator = torch.Generator().manual_seed(1000 * seed + rank)
        if whole or not (dtype.is_floating_point or dtype.is_complex):
            low = 0 if dtype in (*UNSIGNED, torch.uint8, torch.bool) else -6
            numbers = torch.randint(low, 7, (numel,), generator=generator)
            found.append((numbers % 2 == 0) if dtype == torch.bool else numbers.to(dtype))
        else:
            wide = torch.complex128 if dtype.is_complex else torch.float64
            found.append(torch.randn(numel, generator=generator, dtype=wide).to(dtype))
    return found


def total(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Return the exact sum of whole numbers, and the float64 sum of others."""
    dtype = tensors[0].dtype
    if dtype == torch.bool:
        return torch.stack(tensors).any(0)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.stack([tensor.to(wide) for tensor in tensors]).sum(0)


def bound(tensors: list[torch.Tensor], topology: Topology, wire: torch.dtype) -> torch.Tensor:
    """Return how far a result may be from the exact sum.

    Each of the Y rows' sums is rounded once, half a unit in the last place of the wire's type, and
    their sum once more: u (sum over rows of |row's sum|) + u |sum|, to first order in u.
    """
    u = torch.finfo(wire).eps / 2
    stacked = torch.stack([tensor.double() for tensor in tensors])
    rows = [
        stacked[list(row + rest)].sum(0).abs()
        for row, rest in zip(topology.grid, topology.remainder, strict=True)
    ]
    magnitude = torch.stack(rows).sum(0)
    return u * (1 + u) * (magnitude + stacked.sum(0).abs()) + torch.finfo(wire).smallest_normal


def same_bits(tensors: list[torch.Tensor]) -> bool:
    raw = [tensor.contiguous().view(torch.uint8) for tensor in tensors if tensor.numel()]
    return all(torch.equal(other, raw[0]) for other in raw[1:])


@pytest.mark.parametrize(("size", "grid"), GRIDS)
def test_every_grid_is_exact_counts_its_messages_and_repeats(ranks, size, grid):
    reducers = ranks(size, Preference("torus", grid, "bf16" if grid.endswith("x1") else "fp32"))
    topology = reducers.topology
    narrow = grid.endswith("x1")
    for numel in (0, 1, size - 1, 4 * size, 1009, 300_000):
        tensors = values(size, numel, torch.float32, numel, whole=True)
        expected = total(tensors)
        before = stats().get("torus", {"steps": 0, "bytes": 0, "calls": 0})
        reducers.reduce(tensors)
        after = stats()["torus"]
        assert same_bits(tensors)
        assert torch.equal(tensors[0].double(), expected)
        chunks = reducers.reducers[0].selection.choose(4 * numel).chunks
        sums = [sent(topology, rank, numel, chunks, 4, 2 if narrow else 4) for rank in range(size)]
        assert after["steps"] - before["steps"] == sum(steps for steps, _ in sums)
        assert after["bytes"] - before["bytes"] == sum(bytes for _, bytes in sums)
        assert after["calls"] - before["calls"] == size
    tensors = values(size, 100_003, torch.float32, 5, whole=False)
    again = [tensor.clone() for tensor in tensors]
    limit = bound(tensors, topology, torch.bfloat16 if narrow else torch.float32)
    expected = total(tensors)
    reducers.reduce(tensors)
    assert same_bits(tensors)
    assert bool(((tensors[0].double() - expected).abs() <= limit).all())
    reducers.reduce(again)
    assert same_bits([tensors[0], *again])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_one_rank_alone_keeps_its_values(ranks, dtype):
    reducers = ranks(1, Preference("torus", None, "bf16"))
    assert reducers.topology.rows == reducers.topology.columns == 1
    for mean in (False, True):
        tensors = values(1, 1009, dtype, 3, whole=False)
        kept = tensors[0].clone()
        reducers.reduce(tensors, mean=mean)
        assert torch.equal(tensors[0], kept)


@pytest.mark.parametrize("hosts", HOSTS)
def test_hosts_of_any_size_and_placement(ranks, hosts):
    reducers = ranks(len(hosts), Preference("torus", wire="bf16"), hosts=list(hosts))
    tensors = values(len(hosts), 5003, torch.float32, 1, whole=True)
    expected = total(tensors)
    reducers.reduce(tensors)
    assert same_bits(tensors) and torch.equal(tensors[3].double(), expected)


def test_counts_are_those_of_the_cost_model():
    model = CostModel(Link(1e-5, 1e-9), Link(1e-4, 1e-8))
    for hosts in ("aabb", "aaaabbbb", "aabbcc", "aaabbbccc"):
        topology = Topology.from_hosts(hosts)
        numel = 3 * topology.world_size * 64
        for chunks in (1, 3):
            for wire, size in (("fp32", 4), ("bf16", 2)):
                steps, bytes = sent(topology, 0, numel, chunks, 4, size)
                traffic = model.bytes_per_rank("torus", 4.0 * numel, topology, wire)
                assert steps == model.steps("torus", topology, chunks)
                assert bytes == pytest.approx(traffic.total)


@pytest.mark.parametrize("size", [4, 5])
def test_any_size_and_type(ranks, size):
    reducers = ranks(size, Preference("torus", "2x2"))
    torus = [reducer.start_torus for reducer in reducers.reducers]

    @settings(max_examples=100, deadline=None, derandomize=True, database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(
        numel=st.one_of(st.integers(0, 40), st.integers(0, 5000)),
        dtype=st.sampled_from([*FLOATING, *WHOLE, *UNSIGNED, *COMPLEX, torch.bool]),
        chunks=st.integers(1, 6),
        mean=st.booleans(),
        whole=st.booleans(),
    )
    def check(numel, dtype, chunks, mean, whole):
        mean = mean and dtype not in (*UNSIGNED, torch.bool)
        tensors = values(size, numel, dtype, numel, whole)
        expected = total(tensors)
        works = [start(tensor, chunks, mean=mean) for start, tensor in zip(torus, tensors)]  # noqa: B905
        for work in works:
            work.wait()
        assert same_bits(tensors)
        found = tensors[0]
        if dtype in (*FLOATING, *COMPLEX):
            expected = expected / size if mean else expected
            tolerance = 4 * torch.finfo(dtype).eps
            torch.testing.assert_close(found.to(expected.dtype), expected, rtol=tolerance,
                                       atol=8 * tolerance)  # fmt: skip
            if whole and not mean:
                assert torch.equal(found, expected.to(dtype))
        elif dtype == torch.bool:
            assert torch.equal(found, expected)
        else:
            exact = torch.div(expected, size, rounding_mode="trunc") if mean else expected
            # As NCCL's: sums wrap in the type, quotients are cut towards zero.
            assert torch.equal(found.to(torch.int64), exact.to(torch.int64).to(dtype).long())

    check()


def test_a_type_without_a_sum_is_refused(ranks):
    reducer = ranks(4, Preference("torus", "2x2")).reducers[0]
    for tensor, mean in ((torch.zeros(3, dtype=torch.bool), True),
                         (torch.zeros(3, dtype=torch.uint16), True),
                         (torch.zeros(3).to(torch.float8_e4m3fn), False)):  # fmt: skip
        with pytest.raises(ValueError, match="all-reduce: no"):
            reducer.start(tensor, mean=mean)


def test_memory_orders_and_gaps(ranks):
    reducers = ranks(4, Preference("torus", "2x2"))
    for make in (
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.transpose(0, 3),
        lambda x: torch.stack([x, x], -1)[..., 0],
        lambda x: x.to(torch.complex64).transpose(1, 2),
    ):
        tensors = [make(torch.randint(0, 9, (2, 3, 5, 4)).float()) for _ in range(4)]
        strides, expected = tensors[0].stride(), total(tensors)
        reducers.reduce(tensors)
        for tensor in tensors:
            assert torch.equal(tensor.to(expected.dtype), expected) and tensor.stride() == strides


@pytest.mark.parametrize("wire", ["bf16", "fp16"])
def test_a_narrow_wire_keeps_its_bound_and_its_bits(ranks, wire):
    reducers = ranks(6, Preference("torus", "3x2", wire))
    tensors = values(6, 50_001, torch.float32, 2, whole=False)
    expected, limit = total(tensors), bound(tensors, reducers.topology, reducers.reducers[0].wire)
    reducers.reduce(tensors)
    assert same_bits(tensors)
    error = (tensors[0].double() - expected).abs()
    assert bool((error <= limit).all()) and error.max() > 0
    # Other types have a wire of their own.
    tensors = values(6, 5001, torch.float64, 2, whole=False)
    expected = total(tensors)
    reducers.reduce(tensors)
    torch.testing.assert_close(tensors[0], expected, rtol=1e-14, atol=1e-14)


def test_a_mean_does_not_overflow_a_float16_wire(ranks):
    reducers = ranks(4, Preference("torus", "2x2", "fp16"))
    tensors = [torch.full((1000,), 60000.0) for _ in range(4)]
    reducers.reduce(tensors, mean=True)
    torch.testing.assert_close(tensors[0], torch.full((1000,), 60000.0), rtol=1e-3, atol=0)


def test_squared_norms_come_along(ranks):
    for preference in (Preference("torus", "2x2"), Preference("flat")):
        reducers = ranks(5, preference)
        tensors = values(5, 30_011, torch.float32, 3, whole=False)
        before = sum(float(tensor.double().square().sum()) for tensor in tensors)
        squares = [torch.zeros(2, dtype=torch.float64) for _ in range(5)]
        works = [
            reducer.start(tensor, mean=True, squares=square)
            for reducer, tensor, square in zip(reducers.reducers, tensors, squares, strict=True)
        ]
        for work in works:
            work.wait()
        found = torch.stack(squares).sum(0)
        assert float(found[0]) == pytest.approx(before, rel=1e-12)
        assert float(found[1]) == pytest.approx(float(tensors[0].double().square().sum()), rel=1e-9)


def test_many_in_flight_come_out_right(ranks):
    reducers = ranks(4, Preference("torus", "2x2"))
    works, tensors = [], []
    for number in range(20):
        tensors.append(values(4, 997 * number, torch.float32, number, whole=True))
        works += [r.start_torus(t, 3) for r, t in zip(reducers.reducers, tensors[-1], strict=True)]
    futures = [work.get_future() for work in works]
    for number, group in enumerate(tensors):
        expected = total(values(4, 997 * number, torch.float32, number, whole=True))
        for rank in range(4):
            works[4 * number + rank].wait()
            assert torch.equal(group[rank].double(), expected)
    assert all(work.is_completed() for work in works)
    assert all(future.wait()[0] is not None for future in futures)


def test_both_faces_speak_to_each_other(ranks, face, monkeypatch):
    """The faces send the same messages, so ranks of both give one result, and the same bits."""
    if face == "python":
        pytest.skip("needs both faces")
    tensors = values(4, 50_001, torch.float32, 7, whole=False)
    copies = [tensor.clone() for tensor in tensors]
    ranks(4, Preference("torus", "2x2", "bf16")).reduce(tensors)
    monkeypatch.setattr(algorithms, "make_torus", lambda topology, rank, *rest: (
        Torus if rank % 2 else torus_face.CompiledTorus)(topology, rank, *rest))  # fmt: skip
    mixed = ranks(4, Preference("torus", "2x2", "bf16"))
    assert {type(reducer.torus) for reducer in mixed.reducers} == {Torus, torus_face.CompiledTorus}
    mixed.reduce(copies)
    assert same_bits([*tensors, *copies])


def test_a_missing_rank_ends_in_an_error_that_names_rank_and_step(ranks):
    reducers = ranks(4, Preference("torus", "2x2"), timeout=timedelta(seconds=3))
    tensors = values(4, 100_000, torch.float32, 0, whole=True)
    start = time.monotonic()
    works = [reducers.reducers[rank].start(tensors[rank]) for rank in range(3)]
    futures = [work.get_future() for work in works]
    for rank, work in enumerate(works):
        with pytest.raises(RuntimeError, match=rf"torus all-reduce: rank {rank} in step '(row|co)"):
            work.wait()
        with pytest.raises(RuntimeError, match="torus all-reduce"):
            futures[rank].wait()
        assert not work.is_success()
    assert time.monotonic() - start < 8
    # It stays an error: nobody knows what of the next message the others would take for the last.
    with pytest.raises(RuntimeError, match="torus all-reduce"):
        reducers.reducers[0].start(tensors[0]).wait()
