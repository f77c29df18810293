"""The CUDA kernels on the emulated device: orders of threads, barriers, sanitizers, contraction.

Their results are tested by the operators' own tests, which run on these kernels too (conftest.py).
"""

from __future__ import annotations

import os
import subprocess
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import pytest
import torch

from largebatch import _ops

ORDERS = ("backward", "random:1", "random:2", "random:3")
FAMILIES = ("norms", "spreads", "slabs", "optimizers", "others")
ops = torch.ops.largebatch


def run(driver: Path, *families: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the driver; its address space as ThreadSanitizer wants it."""
    return subprocess.run(
        ["setarch", "-R", str(driver), *families],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=3000,
    )


def results(driver: Path, *families: str, **environment: str) -> list[str]:
    """Return a line a family with the hash of its results, or what went wrong."""
    done = run(driver, *families, **environment)
    lines = [line for line in done.stdout.splitlines() if line.split()[0] in families]
    return lines if done.returncode == 0 else [done.stdout + done.stderr]


@pytest.fixture(scope="module")
def driver(emulation: ModuleType) -> Path:
    return emulation.build(driver="driver.cpp")


@pytest.mark.parametrize("order", ["forward", *ORDERS])
def test_the_machine_knows_mistakes_and_lets_blocks_meet(emulation: ModuleType, order: str) -> None:
    done = run(emulation.build(driver="mistakes.cpp"), CUDA_EMULATION_ORDER=order)
    said = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert "threads wait at different barriers" in said.pop("divergent")
    assert "that 24 threads have passed by" in said.pop("passed_by")
    assert "without one of its lanes" in said.pop("missing_lane")
    assert "of a lane outside of the mask" in said.pop("outside_of_mask")
    assert "invalid configuration, 0 blocks" in said.pop("empty_grid")
    assert "blocks that wait for ever" in said.pop("more_than_fit")
    assert said == dict.fromkeys(("unwritten_is_nan", "meet", "votes"), "fine")


@pytest.mark.slow
def test_five_orders_of_threads_and_blocks_give_the_same_bits(driver: Path) -> None:
    forward = results(driver, *FAMILIES)
    assert [line.split()[0] for line in forward] == list(FAMILIES)
    for order in ORDERS:
        assert results(driver, *FAMILIES, CUDA_EMULATION_ORDER=order) == forward, order


def test_the_driver_comes_to_every_barrier_of_the_sources(
    emulation: ModuleType, driver: Path
) -> None:
    met = run(driver, *FAMILIES).stdout.splitlines()[len(FAMILIES) :]
    written = [
        f"csrc/{path.relative_to(emulation.CSRC).as_posix()}:{line}"
        for path in emulation.CSRC.rglob("*.*")
        for line, text in enumerate(path.read_text().splitlines(), 1)
        if "__syncthreads()" in text
    ]
    assert sorted(met) == sorted(written)


@pytest.mark.slow
def test_a_barrier_taken_out_is_noticed(driver: Path) -> None:
    """In some order of threads a result of a family that meets it differs, or a launch fails."""
    usual, meeting = {}, defaultdict(list)
    for family in FAMILIES:
        usual[family], *barriers = run(driver, family).stdout.splitlines()
        for barrier in barriers:
            meeting[barrier].append(family)
    assert meeting
    unnoticed = [
        barrier
        for barrier, families in meeting.items()
        if all(
            results(driver, family, CUDA_EMULATION_ORDER=order, CUDA_EMULATION_SKIP=barrier)
            == [usual[family]]
            for order in ("forward", *ORDERS, "random:4", "random:5")
            for family in families
        )
    ]
    assert not unnoticed


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_addresses_and_undefined_behaviour(emulation: ModuleType) -> None:
    flags = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1")
    done = run(
        emulation.build(*flags, driver="driver.cpp"), *FAMILIES, ASAN_OPTIONS="detect_leaks=0"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=() if family in ("spreads", "slabs") else pytest.mark.long)
        for family in FAMILIES
    ],
)
def test_no_two_threads_race(emulation: ModuleType, family: str) -> None:
    """ThreadSanitizer, with CUDA threads as its threads."""
    done = run(emulation.build("-fsanitize=thread", "-g1", driver="driver.cpp"), family)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("family", "unseen"), [("slabs", 2), pytest.param("others", 1, marks=pytest.mark.long)]
)
def test_threads_that_race_are_reported(
    emulation: ModuleType, driver: Path, family: str, unseen: int
) -> None:
    """Each barrier taken out is a race, but for those that only order a block's own atomics.

    Of the others that is the one between the rows of a block: it takes more rows than are here.
    """
    barriers = run(driver, family).stdout.splitlines()[1:]
    watched = emulation.build("-fsanitize=thread", "-g1", driver="driver.cpp")
    reported = [
        "WARNING: ThreadSanitizer: data race"
        in run(watched, family, CUDA_EMULATION_SKIP=barrier, TSAN_OPTIONS="halt_on_error=1").stderr
        for barrier in barriers
    ]
    assert len(barriers) > 3 * unseen
    assert sum(reported) >= len(barriers) - unseen


@pytest.mark.slow
def test_fused_multiply_add_changes_no_more_than_roundings(emulation: ModuleType) -> None:
    """Nvcc contracts, so no choice in the kernels may hang on a last digit."""
    torch.manual_seed(0)
    x, grad = torch.randn(2, 9, 17, 4, 4)
    weight = torch.rand(17)
    for policy in range(3):
        options = (policy, 3, 4, 2, 1e-5)
        found = []
        for flags in ((), ("-mfma", "-ffp-contract=fast")):
            with emulation.serving(*flags):
                y, statistics, mask = ops.ghost_norm(x, weight, None, None, *options, True)
                found.append((y, statistics, *ops.ghost_norm_backward(
                    grad, x, weight, statistics, mask, *options, False)))  # fmt: skip
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("operator", "launches"), [("sgd", 1), ("lars", 2), ("lamb", 2)])
@pytest.mark.parametrize("types", [1, 3])
def test_launches_of_a_step(
    emulation: ModuleType, operator: str, launches: int, types: int
) -> None:
    """161 tensors, as many as ResNet-50 has: one or two launches for each combination of types."""
    dtypes = (torch.float32, torch.float16, torch.bfloat16)[:types]
    params = [torch.ones(3, dtype=dtypes[i % types]) for i in range(161)]
    params[0] = torch.ones(20000)
    grads = [torch.ones_like(param) for param in params]
    first, second = ([torch.zeros_like(p, dtype=torch.float32) for p in params] for _ in range(2))
    norms = torch.zeros(161, 3, dtype=torch.float64)
    settings = torch.tensor([[0.1, 0.01, 1.0]] * 161, dtype=torch.float64)
    with emulation.serving() as library:
        before = library.emulation_launches()
        if operator == "sgd":
            _ops.sgd_(params, grads, first, lr=0.1, momentum=0.9)
        elif operator == "lars":
            _ops.lars_(params, grads, first, [], norms, settings)
        else:
            steps = [torch.zeros(()) for _ in params]
            _ops.lamb_(params, grads, first, second, [], steps, norms, settings)
        assert library.emulation_launches() - before == launches * types


# --- What the emulation has found: each of these failed before. -----------------------------------


@pytest.fixture
def on_cuda_kernels(emulation: ModuleType):
    with emulation.serving() as library:
        yield library


def test_a_negative_zero_is_no_largest_deviation(on_cuda_kernels) -> None:
    """The k-th largest was found by bits, and those of -0.0 are above every number's."""
    x = torch.tensor([-1.0, 1.0, -0.0]).view(3, 1)
    y, statistics, _ = ops.ghost_norm(x, None, None, None, 2, 1, 3, 1, 1e-5, False)
    expected = _ops.reference_ghost_norm(x, None, None, None, 2, 1, 3, 1, 1e-5, False)
    assert statistics[1].item() == 1.0
    torch.testing.assert_close(y, expected[0])


def test_packs_of_sixteen_bits_beside_float32_are_not_thought_aligned(on_cuda_kernels) -> None:
    """Every second lane loaded moments as if aligned to 16 bytes: a fault in some compilers."""
    for numel in (8, 4096, 8200):
        params, grads = [torch.randn(numel)], [torch.randn(numel)]
        buffers = [torch.randn(numel).bfloat16()]
        copies = [[t.clone() for t in group] for group in (params, grads, buffers)]
        _ops.sgd_(params, grads, buffers, lr=0.1, momentum=0.9)
        _ops.reference_sgd_(
            *copies, lr=0.1, momentum=0.9, weight_decay=0.0, nesterov=False, grad_factor=None,
            found_inf=None, dampening=0.0, decoupled=False, maximize=False,
            lr_inside_momentum=False, buffer_factor=1.0,
        )  # fmt: skip
        torch.testing.assert_close(params, copies[0])
        torch.testing.assert_close(buffers, copies[2])


def test_top_k_refuses_more_values_than_it_counts(on_cuda_kernels) -> None:
    x = torch.empty(1, 1, 2**32, dtype=torch.float16)  # never touched
    with pytest.raises(RuntimeError, match="top-k takes less than 2\\^32 on CUDA"):
        ops.ghost_norm(x, None, None, None, 2, 1, 1, 1, 1e-5, False)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("place", [0, 5])
def test_an_infinite_value_gives_an_infinite_mean(on_cuda_kernels, layout: str, place: int) -> None:
    x = torch.randn(6, 3, 2, 2)
    x[place, 1] = torch.inf
    if layout == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    for policy in range(3):
        options = (None, None, None, policy, 2, 6, 1, 1e-5, False)
        for one, other in zip(
            ops.ghost_norm(x, *options), _ops.reference_ghost_norm(x, *options), strict=True
        ):
            torch.testing.assert_close(one, other, equal_nan=True)
