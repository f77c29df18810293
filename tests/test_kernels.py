"""What nvcc makes of the CUDA kernels may not get worse: benchmarks/kernels.py and its record."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "benchmarks" / "compiled" / "kernels.json"
WAYS = ("forward", "backward")
OPTIMIZERS = ("optim/cuda.cu", "optim/layerwise_cuda.cu")

PTXAS = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z3sumPKfPf' for 'sm_90'
ptxas info    : Function properties for _Z3sumPKfPf
    0 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 46 registers, used 1 barriers, 272 bytes smem, 32696 bytes cmem[0]
"""
PTX = """\
.visible .entry _Z3sumPKfPf(
\t.param .u64 _Z3sumPKfPf_param_0
)
.maxntid 256
.minnctapersm 4
{
"""
SASS = """\
.text._Z3sumPKfPf:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/                   LDG.E.128 R8, desc[UR4][R2.64+0x10] ;
        /*0030*/                   LDG.E R12, desc[UR4][R16.64] ;
        /*0040*/                   FADD R20, R20, R5 ;
        /*0050*/                   LDG.E.128 R24, desc[UR4][R2.64+0x20] ;
        /*0060*/                   IADD3 R30, R30, 0x1, RZ ;
        /*0070*/              @!P0 BRA `(.L_x_1) ;
.L_x_2:
        /*0080*/                   IADD3 R31, R31, 0x1, RZ ;
        /*0090*/              @!P1 BRA `(.L_x_2) ;
        /*00a0*/                   EXIT ;
"""


def load(name: str) -> ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return __import__(name)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def kernels() -> ModuleType:
    return load("kernels")


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    return found


def test_reports_are_read(kernels: ModuleType) -> None:
    assert kernels.read_ptxas(PTXAS) == {
        "_Z3sumPKfPf": {"registers": 46, "spill_bytes": 12, "shared_bytes": 272}
    }
    assert kernels.read_threads(PTX) == {"_Z3sumPKfPf": 256}
    long = "void largebatch::(anonymous namespace)::sum<float, largebatch::Kind<3>, 64>(float*)"
    assert kernels.short_name(long) == "sum<float, Kind<3>, 64>"


def test_the_loop_that_loads_is_measured_by_units_of_work(kernels: ModuleType) -> None:
    functions = kernels.read_functions(SASS)
    assert list(functions) == ["_Z3sumPKfPf"]
    body = kernels.hot_loop(*functions["_Z3sumPKfPf"], 16)
    assert [each.name for each in body][:2] == ["LDG.E.128", "LDG.E.128"]
    assert kernels.loop_figures(body, 16) == {
        "units_a_round": 3.0, "instructions": 2.3, "wide_loads": 1.0, "narrow_loads": 0.33,
        "constant_loads": 0.0,
    }  # fmt: skip
    assert kernels.in_flight(body) == 16 + 16 + 4  # then the sum needs the first


def test_blocks_that_fit_a_multiprocessor(kernels: ModuleType) -> None:
    """By the occupancy calculator of CUDA's guide."""
    at = kernels.ARCHITECTURES["sm_90"]
    fitting = kernels.blocks_per_multiprocessor
    assert [fitting(at, registers, 0, 256) for registers in (32, 46, 64, 65, 102)] == [
        8,
        5,
        4,
        3,
        2,
    ]
    assert fitting(at, 32, 100 * 1024, 256) == 2
    assert fitting(at, 16, 0, 32) == 32


def test_what_is_worse_is_named(kernels: ModuleType, record: dict[str, Any]) -> None:
    old = record["kernels"]["sm_90"][OPTIMIZERS[0]]["sgd_kernel<float, float, 576>"]
    assert kernels.worse(old, old) == []
    spilling = {**old, "spill_bytes": 8, "blocks": old["blocks"] - 1, "registers": 90}
    assert [each.split()[0] for each in kernels.worse(old, spilling)] == [
        "registers", "spill_bytes", "blocks",
    ]  # fmt: skip
    assert kernels.worse(old, {**old, "instructions": 1.01 * old["instructions"]}) == []
    assert kernels.worse(old, {**old, "instructions": 1.05 * old["instructions"]})


def test_the_record_has_every_hot_kernel(kernels: ModuleType, record: dict[str, Any]) -> None:
    assert list(record["kernels"]) == list(kernels.ARCHITECTURES)
    for files in record["kernels"].values():
        assert {file: list(found) for file, found in files.items()} == {
            file: list(hot) for file, hot in kernels.HOT.items()
        }


def test_hot_kernels_keep_within_their_bars(record: dict[str, Any]) -> None:
    for architecture, files in record["kernels"].items():
        for file, found in files.items():
            for name, figures in found.items():
                at = (architecture, name)
                assert figures["spill_bytes"] == 0, at
                if file in OPTIMIZERS:
                    assert figures["registers"] <= 64, at
                    assert figures["blocks"] >= 4, at
                    assert figures["narrow_loads"] == figures["constant_loads"] == 0, at


def test_norms_keep_within_their_bars(record: dict[str, Any]) -> None:
    """Instructions a unit of 16 bytes on sm_90: 60, with a mask 90; 24 KB asked for by sums."""
    forward, backward = (record["kernels"]["sm_90"][f"norm/cuda_{way}.cu"] for way in WAYS)
    for access in (1, 2):
        figures = forward[f"normalize_kernel<__nv_bfloat16, (Access){access}>"]
        assert figures["instructions"] <= 60
        assert figures["most_instructions"] <= 90  # with a mask
        assert figures["narrow_loads"] == 0  # no coefficient in the loop
    for policy in (0, 1):  # of top-k's loop 101
        masked = backward[f"gradient_kernel<__nv_bfloat16, (NormPolicy){policy}, (Access)1>"]
        assert masked["instructions"] <= 90
        assert masked["narrow_loads"] == 1  # the mask
    for found in (forward, backward):
        sums = [found[name] for name in found if name.startswith(("sum_rows", "spread"))]
        assert sums and all(each["bytes_in_flight"] >= 24 * 1024 for each in sums)


def test_the_page_is_the_records(record: dict[str, Any]) -> None:
    roofline = load("roofline")
    written = (RECORD.parent / "roofline.md").read_text(encoding="utf-8")
    assert written == roofline.page(record), "run python benchmarks/roofline.py"


def test_lamb_is_modelled_within_its_bar(record: dict[str, Any]) -> None:
    """1.5 times fused AdamW's 28 bytes a parameter at 350M, on every GPU of the page."""
    roofline = load("roofline")
    for gpu in roofline.GPUS:
        took = roofline.step_seconds("LAMB", 350e6, gpu, record["kernels"])
        assert took <= 1.5 * 350e6 * 28 / gpu.copy, gpu.name


def test_norms_are_modelled_within_their_bars(record: dict[str, Any]) -> None:
    """ResNet-50's norms at a batch of 256, H200: of 3 + 5 passes; then by slabs."""
    roofline = load("roofline")
    gpu = next(each for each in roofline.GPUS if each.name == "H200")
    full = roofline.norm_bytes(256, 1) * roofline.FULL_BYTES / gpu.copy
    assert roofline.norm_seconds(256, gpu, record["kernels"]) <= 1.05 * full
    assert roofline.slab_seconds(256, gpu) <= 0.75 * full


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("file", sorted(load("kernels").HOT))
def test_no_hot_kernel_has_got_worse(
    kernels: ModuleType, record: dict[str, Any], file: str
) -> None:
    """Compiled anew for sm_90; the other architectures take minutes more."""
    if missing := kernels.lacking():
        pytest.skip(f"missing here: {missing}")
    if kernels.nvcc_version() != record["nvcc"]:
        pytest.skip(f"the record is of nvcc {record['nvcc']}, here is {kernels.nvcc_version()}")
    compiled = kernels.compile_source(file, "sm_90")
    found = {
        name: kernels.worse(
            record["kernels"]["sm_90"][file][name],
            kernels.figures(compiled, name, bytes_of_unit, "sm_90"),
        )
        for name, bytes_of_unit in kernels.HOT[file].items()
    }
    assert not {name: lines for name, lines in found.items() if lines}
