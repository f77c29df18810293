"""What the CUDA kernels should take on GPUs that were not at hand: a model, never a measurement.

A kernel takes the longest of three times, from what it moves and from what nvcc made of it
(compiled/kernels.json, kernels.py):

- memory: bytes / the bandwidth of a copy;
- waiting: bytes read / (bytes that a full GPU has asked for at a time / latency of loaded memory);
- instructions: units of 16 bytes x instructions a unit / 32 / (4 a clock and multiprocessor x 0.8).

    python benchmarks/roofline.py          # writes benchmarks/compiled/roofline.md
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).resolve().parent / "compiled"
COPY = 0.89  # of the bandwidth on paper: an H200 copied at 4.3 of 4.8 TB/s
LATENCY = 800e-9  # seconds from a load to its value while memory is busy
ISSUE = 0.8  # of the warp instructions that could be issued
LAUNCH = 1.5e-6  # seconds from one kernel's end to the next one's begin


@dataclass(frozen=True)
class Gpu:
    """Figures of data sheets."""

    name: str
    architecture: str
    bandwidth: float  # bytes a second, on paper
    multiprocessors: int
    clock: float  # Hz, boost

    @property
    def copy(self) -> float:
        """Bytes a second, read and written, of a copy."""
        return COPY * self.bandwidth


GPUS = (
    Gpu("A100 80 GB", "sm_80", 2.039e12, 108, 1.41e9),
    Gpu("H100 SXM", "sm_90", 3.35e12, 132, 1.755e9),
    Gpu("H200", "sm_90", 4.8e12, 132, 1.755e9),
    Gpu("B200", "sm_100", 8.0e12, 148, 1.85e9),
)


@dataclass(frozen=True)
class Pass:
    """One launch.

    Attributes:
        file, kernel: its place in compiled/kernels.json.
        read, written: bytes an element.
        unit: elements of a unit of work.
    """

    file: str
    kernel: str
    read: float
    written: float
    unit: int = 4


OPTIM, LAYERWISE = "optim/cuda.cu", "optim/layerwise_cuda.cu"
# Steps of optimizers in float32: what they launch, and what a fused optimizer of torch moves.
STEPS: dict[str, tuple[Pass, ...]] = {
    "SGD, momentum": (Pass(OPTIM, "sgd_kernel<float, float, 576>", 12, 8),),
    "LARS": (
        Pass(LAYERWISE, "lars_sums_kernel<float, float, 400>", 8, 0),
        Pass(LAYERWISE, "lars_update_kernel<float, float, 400>", 12, 8),
    ),
    "LAMB": (
        Pass(LAYERWISE, "lamb_moments_kernel<float, float, 400>", 16, 8),
        Pass(LAYERWISE, "lamb_apply_kernel<float, float, 400>", 12, 4),
    ),
    "global norm": (Pass(OPTIM, "square_sum_kernel<float, 1344>", 4, 0),),
}
PEERS = {"SGD, momentum": 20, "LARS": 20, "LAMB": 28}  # bytes of fused SGD and AdamW
PEER_NAMES = {"SGD, momentum": "fused SGD", "LARS": "fused SGD", "LAMB": "fused AdamW"}
APEX_LAMB = 52  # bytes: gradients for the norm 4; 20 read and 12 written; 12 read and 4 written
MODELS = {"ResNet-50, 161 tensors": 25.6e6, "350M": 350e6}

# By the listing of the same nvcc for sm_90, and the same model, while one kernel held all types.
BEFORE = (
    "With one kernel for all types, sums added up by every block of the second launch, and a log "
    "and an expm1 in every thread, until 0a5462a (nvcc 13.0, sm_90):",
    "",
    "| kernel | registers, before | now | blocks, before | now |",
    "|---|---|---|---|---|",
    "| LAMB, moments | 102 | see below | 2 | 4 |",
    "| LAMB, update | 76 | see below | 3 | 5 |",
    "| SGD | 64 | see below | 4 | 6 |",
    "",
    "LAMB at 350M on an H200 was modelled at 4.2 to 4.5 ms then, 1.7 to 1.9 times fused AdamW.",
    "",
)

# Passes over x of a batch norm, forward and backward. cuDNN's are those of its persistent and of
# its plain kernels.
NORM_PASSES = {
    "whole passes: sums, then values": (3, 5),
    "a ghost kept in shared memory": (2, 3),
    "cuDNN, plain": (3, 5),
    "cuDNN, persistent (small x)": (2, 3),
}
# ResNet-50's 53 norms: channels, side of the picture, how many.
RESNET50_NORMS = (
    *((64, 112, 1), (64, 56, 6), (256, 56, 4), (128, 56, 1), (128, 28, 7), (512, 28, 5)),
    *((256, 28, 1), (256, 14, 11), (1024, 14, 7), (512, 14, 1), (512, 7, 5), (2048, 7, 4)),
)


FORWARD, BACKWARD = "norm/cuda_forward.cu", "norm/cuda_backward.cu"
# Launches of a ghost norm in bfloat16, L2; the way back reads the ReLU's mask, a bit an element.
NORM: tuple[Pass, ...] = (
    Pass(FORWARD, "sum_rows_kernel<__nv_bfloat16, (Sums)0, (Access)1>", 2, 0, 8),
    Pass(FORWARD, "normalize_kernel<__nv_bfloat16, (Access)1>", 2, 2, 8),
    Pass(BACKWARD, "sum_rows_kernel<__nv_bfloat16, (Sums)3, (Access)1>", 4.125, 0, 8),
    Pass(BACKWARD, "gradient_kernel<__nv_bfloat16, (NormPolicy)0, (Access)1>", 4.125, 2, 8),
)
FULL_BYTES = 16.0  # an element: 3 + 5 passes
SLAB_BYTES = 10.125  # 2 + 3 passes, and the mask


def seconds_of(step: Pass, elements: float, gpu: Gpu, kernels: dict[str, Any]) -> tuple[float, str]:
    """Return what a launch takes, and what bounds it."""
    found = kernels[gpu.architecture][step.file][step.kernel]
    asked = found["bytes_in_flight"] * gpu.multiprocessors
    issued = ISSUE * 4 * gpu.multiprocessors * gpu.clock
    times = {
        "memory": elements * (step.read + step.written) / gpu.copy,
        "waiting": elements * step.read / (asked / LATENCY),
        "instructions": elements / step.unit * found["instructions"] / 32 / issued,
    }
    bound = max(times, key=lambda key: times[key])
    return times[bound], bound


def step_seconds(name: str, elements: float, gpu: Gpu, kernels: dict[str, Any]) -> float:
    """Return what a step takes, launches included."""
    return sum(seconds_of(each, elements, gpu, kernels)[0] + LAUNCH for each in STEPS[name])


def norm_seconds(batch: int, gpu: Gpu, kernels: dict[str, Any]) -> float:
    """Return what ResNet-50's norms take, forward and backward, launches included."""
    total = 0.0
    for channels, side, count in RESNET50_NORMS:
        elements = batch * channels * side * side
        launches = (seconds_of(each, elements, gpu, kernels)[0] + LAUNCH for each in NORM)
        total += count * sum(launches)
    return total


def slab_seconds(batch: int, gpu: Gpu) -> float:
    """Return the same where every ghost is kept in shared memory: two launches, memory alone."""
    launches = sum(2 * count for *_, count in RESNET50_NORMS)
    return norm_bytes(batch, 1) * SLAB_BYTES / gpu.copy + launches * LAUNCH


def norm_bytes(batch: int, size: int = 2) -> float:
    """Return the bytes of all inputs of ResNet-50's norms."""
    return sum(count * batch * c * side * side * size for c, side, count in RESNET50_NORMS)


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def page(record: dict[str, Any]) -> str:
    """Return the page as Markdown."""
    kernels = record["kernels"]
    lines = [
        "# Roofline of the CUDA kernels",
        "",
        "**A model, not a measurement.** Written by `python benchmarks/roofline.py` from "
        f"`kernels.json` (nvcc {record['nvcc']}) and data sheets. A kernel takes the longest of",
        "",
        f"- memory: bytes / (paper bandwidth x {COPY});",
        f"- waiting: bytes read / (bytes asked for at a time / {LATENCY * 1e9:.0f} ns);",
        f"- instructions: units of 16 bytes x instructions a unit / 32 / (4 a clock x {ISSUE});",
        "",
        f"and {LAUNCH * 1e6:g} us a launch. Caches are left out: what fits into them is faster. So "
        "are the last blocks of a launch, which leave a part of the GPU idle, and the pipes of "
        "float64, which bind no kernel here, but would where float64 has 1/64 of float32's rate.",
        "",
        "| GPU | TB/s on paper | TB/s of a copy | multiprocessors | GHz |",
        "|---|---|---|---|---|",
    ]
    for gpu in GPUS:
        lines.append(
            f"| {gpu.name} | {gpu.bandwidth / 1e12:.2f} | {gpu.copy / 1e12:.2f} | "
            f"{gpu.multiprocessors} | {gpu.clock / 1e9:.2f} |"
        )
    lines += ["", "## Optimizer steps, float32", ""]
    for model, elements in MODELS.items():
        head = [model, "bytes", "launches", "peer, bytes"]
        head += [f"{gpu.name}: us, times peer" for gpu in GPUS]
        rows = []
        for name, passes in STEPS.items():
            peer = PEERS.get(name)
            moved = sum(each.read + each.written for each in passes)
            row = [name, f"{moved:g}", str(len(passes) + (name == "global norm"))]
            row.append(f"{PEER_NAMES[name]}, {peer}" if peer else "")
            for gpu in GPUS:
                took = step_seconds(name, elements, gpu, kernels)
                cell = f"{took * 1e6:.0f}"
                if peer:
                    cell += f", {took / (elements * peer / gpu.copy + LAUNCH):.2f}"
                row.append(cell)
            rows.append(row)
        apex = [f"{elements * APEX_LAMB / gpu.copy * 1e6:.0f}" for gpu in GPUS]
        rows.append(["apex's FusedLAMB, bytes alone", str(APEX_LAMB), "~14", "", *apex])
        lines += _table(head, rows)
    lines += [
        "A launch is a kernel. Ahead of the two of LARS and LAMB a few bytes are cleared: counters "
        "of the blocks that have finished. Tensors of several types take as many launches for "
        "each combination of parameter and moments.",
        "",
        *BEFORE,
        "What bounds each launch at 350M:",
        "",
    ]
    rows = []
    for name, passes in STEPS.items():
        for each in passes:
            bounds = [seconds_of(each, 350e6, gpu, kernels) for gpu in GPUS]
            share = [
                f"{bound}, {350e6 * (each.read + each.written) / gpu.copy / took:.0%} of copy"
                for gpu, (took, bound) in zip(GPUS, bounds, strict=True)
            ]
            rows.append([name, f"`{each.kernel}`", *share])
    lines += _table(["step", "kernel", *(gpu.name for gpu in GPUS)], rows)
    size = norm_bytes(256)
    lines += [
        "## Batch norms of ResNet-50, batch 256, bfloat16, channels last",
        "",
        f"53 norms, {size / 1e9:.2f} GB of inputs; milliseconds forward + backward, by passes over "
        "memory alone. What the kernels reach of it, their instructions tell.",
        "",
    ]
    rows = []
    for name, (forward, backward) in NORM_PASSES.items():
        times = [[n * size / gpu.copy * 1e3 for n in (forward, backward)] for gpu in GPUS]
        rows.append([name, f"{forward} + {backward}", *(f"{f:.2f} + {b:.2f}" for f, b in times)])
    lines += _table(["way", "passes", *(gpu.name for gpu in GPUS)], rows)
    lines += [
        "The kernels as nvcc made them, with the ReLU's mask, and their launches: milliseconds "
        "forward + backward together, and times 3 + 5 whole passes. The slabs' row is of memory "
        "and launches alone, as if the slabs of every norm fitted. The rows are of L2. L1 and "
        "top-k take as many: in the first, blocks that start later wait for the means of those "
        "that started before them. Theirs reads x once more (L1), or five times (top-k).",
        "",
    ]
    full = [FULL_BYTES / 2 * size / gpu.copy for gpu in GPUS]
    ways = {
        "ghosts, 2 + 2 launches": [norm_seconds(256, gpu, kernels) for gpu in GPUS],
        "ghosts by slabs, 1 + 1 launches": [slab_seconds(256, gpu) for gpu in GPUS],
    }
    rows = [
        [way, *(f"{t * 1e3:.2f}, {t / whole:.2f}" for t, whole in zip(took, full, strict=True))]
        for way, took in ways.items()
    ]
    lines += _table(["way", *(gpu.name for gpu in GPUS)], rows)
    lines += [
        "Until 0a5462a the first row was modelled at 25.7 ms on an H200, 2.4 times the whole "
        "passes: 24 coefficient loads and 290 to 335 instructions a unit, and sums of partials "
        "by one thread a channel.",
        "",
        "## The hot kernels",
        "",
    ]
    for architecture, files in kernels.items():
        for file, found in files.items():
            if not found:
                continue
            keys = [key for key in next(iter(found.values())) if key != "threads"]
            lines += [f"### {file}, {architecture}", ""]
            head = ["kernel", *(key.replace("_", " ") for key in keys)]
            lines += _table(
                head, [[f"`{n}`", *(str(f[k]) for k in keys)] for n, f in found.items()]
            )
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kernels", type=Path, default=RECORDS / "kernels.json")
    parser.add_argument("--out", type=Path, default=RECORDS / "roofline.md")
    options = parser.parse_args()
    record = json.loads(options.kernels.read_text(encoding="utf-8"))
    options.out.write_text(page(record), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
