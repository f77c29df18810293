"""What nvcc makes of the CUDA kernels: registers, spills, shared memory, occupancy, inner loops.

No GPU is needed: ``ptxas`` reports the first, the disassembly shows the loop in which a hot kernel
spends its time. ``compiled/kernels.json`` holds the figures of the hot kernels, and a test compiles
them anew and fails when one has got worse (tests/test_kernels.py).

    python benchmarks/kernels.py --json benchmarks/compiled/kernels.json     # 10 minutes of a core
    python benchmarks/kernels.py --file optim/cuda.cu --architecture sm_90  # seconds: print these
    python benchmarks/kernels.py --file norm/cuda_forward.cu --list         # names to choose from
    python benchmarks/kernels.py --hot linear/cuda.cu "shared_kernel<float>" 4

A run over some files or architectures leaves the others of ``--json`` as they are. nvcc is found
as by setup.py; nvdisasm on PATH, beside nvcc, or in triton, which comes with torch.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"

# Hot kernels by file: the name, and the bytes that a thread loads for one unit of work. A unit is
# what 16 bytes of the parameter or of x hold: 4 float32 or 8 bfloat16 values.
HOT: dict[str, dict[str, int]] = {
    # Access 1: channels last, 2: planar. NormPolicy 0: L2, 1: L1, 2: top-k. Of a norm's loops the
    # one without a residual, which backward reads a mask; forward, the one that writes a mask shows
    # in `most_instructions` alone.
    "norm/cuda_forward.cu": {
        "sum_rows_kernel<__nv_bfloat16, (Sums)0, (Access)1>": 16,  # moments
        "spread_kernel<__nv_bfloat16, (NormPolicy)1, false, (Access)1>": 16,
        "normalize_kernel<__nv_bfloat16, (Access)1>": 16,
        "normalize_kernel<__nv_bfloat16, (Access)2>": 16,
    },
    "norm/cuda_backward.cu": {
        "sum_rows_kernel<__nv_bfloat16, (Sums)3, (Access)1>": 32,  # of L2's gradient
        "gradient_kernel<__nv_bfloat16, (NormPolicy)0, (Access)1>": 32,
        "gradient_kernel<__nv_bfloat16, (NormPolicy)1, (Access)1>": 32,
        "gradient_kernel<__nv_bfloat16, (NormPolicy)2, (Access)1>": 32,
        "gradient_kernel<__nv_bfloat16, (NormPolicy)1, (Access)2>": 32,
    },
    "optim/cuda.cu": {
        "sgd_kernel<float, float, 576>": 48,
        "sgd_kernel<__nv_bfloat16, float, 576>": 80,  # with the master in float32
        "square_sum_kernel<float, 1344>": 16,
        "square_sum_kernel<__nv_bfloat16, 1344>": 16,
    },
    "optim/layerwise_cuda.cu": {
        "lars_sums_kernel<float, float, 400>": 32,
        "lars_update_kernel<float, float, 400>": 48,
        "lars_sums_kernel<__nv_bfloat16, float, 400>": 48,
        "lars_update_kernel<__nv_bfloat16, float, 400>": 80,
        "lamb_moments_kernel<float, float, 400>": 64,
        "lamb_apply_kernel<float, float, 400>": 48,
        "lamb_moments_kernel<__nv_bfloat16, float, 400>": 56,  # 4 values
        "lamb_apply_kernel<__nv_bfloat16, float, 400>": 96,
        "lamb_moments_kernel<__nv_bfloat16, __nv_bfloat16, 400>": 40,
        "lamb_apply_kernel<__nv_bfloat16, __nv_bfloat16, 400>": 64,
    },
    "shards/cuda.cu": {
        "sum_shards_kernel<float, float, true>": 16,  # of one shard
        "sum_shards_kernel<__nv_bfloat16, __nv_bfloat16, true>": 16,
    },
}


@dataclass(frozen=True)
class Architecture:
    """What a multiprocessor has (CUDA C++ Programming Guide, compute capabilities)."""

    registers: int
    shared: int  # bytes, of which each block takes 1024 for the system
    threads: int
    blocks: int


ARCHITECTURES = {
    "sm_80": Architecture(65536, 164 * 1024, 2048, 32),
    "sm_90": Architecture(65536, 228 * 1024, 2048, 32),
    "sm_100": Architecture(65536, 228 * 1024, 2048, 32),
}


def blocks_per_multiprocessor(at: Architecture, registers: int, shared: int, threads: int) -> int:
    """Return how many blocks of a kernel are resident together.

    Registers are given out in portions of 256 a warp, to multiples of four warps.
    """
    warps = -(-threads // 32)
    of_warp = -(-registers * 32 // 256) * 256
    by_registers = at.registers // of_warp // 4 * 4 // warps if registers else at.blocks
    by_shared = at.shared // (shared + 1024)
    return min(by_registers, by_shared, at.threads // (32 * warps), at.blocks)


# --- Tools. ---------------------------------------------------------------------------------------


def find_nvcc() -> str | None:
    """Return the CUDA compiler, or None."""
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=str(Path(home, "bin"))) if home else shutil.which("nvcc")


def find_nvdisasm() -> str | None:
    """Return the disassembler, or None."""
    found = shutil.which("nvdisasm")
    nvcc = find_nvcc()
    if found is None and nvcc is not None:
        found = shutil.which("nvdisasm", path=str(Path(nvcc).resolve().parent))
    spec = importlib.util.find_spec("triton")
    if found is None and spec is not None and spec.origin is not None:
        folder = Path(spec.origin).parent / "backends" / "nvidia" / "bin"
        found = shutil.which("nvdisasm", path=str(folder))
    return found


def lacking() -> str:
    """Return which tools are missing here, or an empty string."""
    tools = {"nvcc": find_nvcc(), "nvdisasm": find_nvdisasm(), "c++filt": shutil.which("c++filt")}
    return ", ".join(name for name, path in tools.items() if path is None)


def nvcc_version() -> str:
    """Return nvcc's version, as 13.0: figures of different ones do not compare."""
    done = subprocess.run([str(find_nvcc()), "--version"], capture_output=True, text=True)
    found = re.search(r"release ([\d.]+)", done.stdout)
    return found[1] if found else "unknown"


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout + done.stderr


# --- Reading. -------------------------------------------------------------------------------------


def short_name(name: str) -> str:
    """Return a demangled kernel's name with its template arguments, without namespaces."""
    name = re.sub(r"(largebatch::)?\(anonymous namespace\)::|largebatch::", "", name)
    name = name.removeprefix("void ")
    depth = 0
    for place, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return name[:place]
    return name


def read_ptxas(text: str) -> dict[str, dict[str, int]]:
    """Return registers, bytes of spills and of shared memory by mangled name, of ``ptxas -v``."""
    found: dict[str, dict[str, int]] = {}
    for part in re.split(r"ptxas info\s+: Compiling entry function '", text)[1:]:
        name = part.partition("'")[0]
        spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", part)
        registers = re.search(r"Used (\d+) registers", part)
        shared = re.search(r"(\d+) bytes smem", part)
        found[name] = {
            "registers": int(registers[1]) if registers else 0,
            "spill_bytes": int(spills[1]) + int(spills[2]) if spills else 0,
            "shared_bytes": int(shared[1]) if shared else 0,
        }
    return found


def read_threads(ptx: str) -> dict[str, int]:
    """Return the threads of a block by mangled name, where ``__launch_bounds__`` tells."""
    found = {}
    for entry in re.finditer(r"\.entry (\w+)\((.*?)\)\s*((?:\.\w+ [\d, ]+\s*)*)\{", ptx, re.S):
        bound = re.search(r"\.maxntid (\d+)", entry[3])
        if bound:
            found[entry[1]] = int(bound[1])
    return found


@dataclass
class Instruction:
    """One line of a disassembly."""

    name: str
    operands: str

    @property
    def loads(self) -> int:
        """Bytes that a global load takes for a thread; 0 for other instructions."""
        parts = self.name.split(".")
        if parts[0] not in ("LDG", "LD"):
            return 0
        bits = [int(part) for part in parts if part in ("64", "128", "256")]
        return bits[0] // 8 if bits else 1 if "U8" in parts else 2 if "U16" in parts else 4

    def target(self) -> set[str]:
        """Return the registers that a load writes."""
        first = re.match(r"\s*(?:P\d, )?R(\d+)", self.operands)
        if first is None:
            return set()
        return {f"R{int(first[1]) + i}" for i in range(max(1, self.loads // 4))}

    def reads(self) -> set[str]:
        """Return the registers named after the first operand, and before it in a store."""
        text = self.operands
        if self.name.split(".")[0] not in ("STG", "ST", "STS", "RED"):
            text = text.partition(",")[2]
        return set(re.findall(r"\bR\d+\b", text))


def read_functions(disassembly: str) -> dict[str, tuple[list[Instruction], list[tuple[int, int]]]]:
    """Return instructions and loops, as (first, last), of every function of ``nvdisasm``."""
    found: dict[str, tuple[list[Instruction], list[tuple[int, int]]]] = {}
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in disassembly.splitlines():
        if label := re.match(r"\.text\.(\w+):", line):
            code, labels = [], {}
            found[label[1]] = (code, [])
            loops = found[label[1]][1]
        elif label := re.match(r"(\.L_x?_?\w+):", line):
            labels[label[1]] = len(code)
        elif step := re.match(
            r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*?);", line
        ):
            code.append(Instruction(step[1], step[2]))
            goal = re.search(r"`\((\.L_\w+)\)", step[2])
            if step[1].startswith("BRA") and goal and goal[1] in labels:
                loops.append((labels[goal[1]], len(code) - 1))
    return found


def inner_loops(code: list[Instruction], loops: list[tuple[int, int]]) -> list[list[Instruction]]:
    """Return the loops without a loop in them; without a loop, all of the kernel."""
    inner = [
        (first, last)
        for first, last in loops
        if not any(first <= a and b <= last and (a, b) != (first, last) for a, b in loops)
    ]
    return [code[first : last + 1] for first, last in inner] or [code]


def hot_loop(
    code: list[Instruction], loops: list[tuple[int, int]], bytes_of_unit: int
) -> list[Instruction]:
    """Return the innermost loop that loads most a round; without a loop, all of the kernel.

    Of a kernel's variants (with and without momentum, or a tail of single elements) it is the one
    whose loads are whole units.
    """
    bodies = inner_loops(code, loops)

    def worth(body: list[Instruction]) -> tuple[bool, int, int, int]:
        whole = sum(each.loads for each in body if each.loads >= 16)
        return in_units(body, bytes_of_unit), whole, sum(each.loads for each in body), -len(body)

    return max(bodies, key=worth)


def in_units(body: list[Instruction], bytes_of_unit: int) -> bool:
    """Return whether a loop loads whole units."""
    wide = any(each.loads >= 16 for each in body)
    return wide and wide_bytes(body) % bytes_of_unit == 0


def wide_bytes(body: list[Instruction]) -> int:
    """Return the bytes that a thread loads in portions of 8 and more."""
    return sum(each.loads for each in body if each.loads >= 8)


def in_flight(body: list[Instruction]) -> int:
    """Return the bytes that a thread has asked for before it needs the first of them."""
    start = next((i for i, each in enumerate(body) if each.loads), 0)
    asked, bytes_ = set[str](), 0
    for each in body[start:] + body[:start]:
        if asked & each.reads():
            break
        if each.loads:
            asked |= each.target()
            bytes_ += each.loads
    return bytes_


def loop_figures(body: list[Instruction], bytes_of_unit: int) -> dict[str, float]:
    """Return what a loop costs a unit of work."""
    wide = [each for each in body if each.loads >= 8]
    units = (wide_bytes(body) or sum(each.loads for each in body)) / bytes_of_unit or 1.0
    narrow = [each for each in body if 0 < each.loads < 8]
    constant = [each for each in body if each.name.split(".")[0] in ("LDC", "LDCU", "ULDC")]
    return {
        "units_a_round": round(units, 2),
        "instructions": round(len(body) / units, 1),
        "wide_loads": round(len(wide) / units, 2),
        "narrow_loads": round(len(narrow) / units, 2),
        "constant_loads": round(len(constant) / units, 2),
    }


# --- All together. --------------------------------------------------------------------------------


@dataclass
class Compiled:
    """A source compiled for one architecture."""

    usage: dict[str, dict[str, int]]  # by short name
    code: dict[str, tuple[list[Instruction], list[tuple[int, int]]]]


def compile_source(file: str, architecture: str) -> Compiled:
    """Compile a ``.cu`` file of ``csrc`` and read what the tools say of it."""
    with TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        options = ["-O3", "-std=c++17", f"-I{CSRC}", f"-arch={architecture}", "-Xptxas", "-v"]
        keep = ["--keep", "--keep-dir", folder, "-cubin", "-o", str(cubin)]
        said = _run([str(find_nvcc()), *options, *keep, str(CSRC / file)])
        threads: dict[str, int] = {}
        for ptx in Path(folder).glob("*.ptx"):
            threads.update(read_threads(ptx.read_text()))
        functions = read_functions(_run([str(find_nvdisasm()), "-c", str(cubin)]))
    usage = read_ptxas(said)
    demangled = subprocess.run(
        ["c++filt"], input="\n".join(usage), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    names = {name: short_name(text) for name, text in zip(usage, demangled, strict=True)}
    for name, figures in usage.items():
        figures["threads"] = threads.get(name, 0)
    return Compiled(
        {names[name]: figures for name, figures in usage.items()},
        {names[name]: functions[name] for name in usage if name in functions},
    )


def figures(compiled: Compiled, name: str, bytes_of_unit: int, architecture: str) -> dict[str, Any]:
    """Return all figures of one hot kernel.

    Raises:
        SystemExit: the source has no such kernel.
    """
    if name not in compiled.usage:
        raise SystemExit(f"kernels.py: no kernel {name}; there are " + "; ".join(compiled.usage))
    usage = compiled.usage[name]
    threads = usage["threads"] or 256
    blocks = blocks_per_multiprocessor(
        ARCHITECTURES[architecture], usage["registers"], usage["shared_bytes"], threads
    )
    body = hot_loop(*compiled.code[name], bytes_of_unit)
    loops = [body, *inner_loops(*compiled.code[name])]
    whole = [loop for loop in loops if loop is body or in_units(loop, bytes_of_unit)]
    return {
        **usage,
        "blocks": blocks,
        **loop_figures(body, bytes_of_unit),
        "most_instructions": max(
            loop_figures(loop, bytes_of_unit)["instructions"] for loop in whole
        ),
        "bytes_in_flight": in_flight(body) * threads * blocks,
    }


MUST_NOT_RISE = ("registers", "spill_bytes", "shared_bytes", "instructions", "most_instructions",
                 "narrow_loads", "constant_loads")  # fmt: skip
MUST_NOT_FALL = ("blocks", "bytes_in_flight")


def worse(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return which figures of a kernel are worse than those kept.

    More registers are no loss by themselves, as long as no block less fits; instructions have 2%
    of leeway, since any change moves them. A record may be older than a figure.
    """
    found = []
    for key in MUST_NOT_RISE:
        if key not in old:
            continue
        if new[key] > old[key] * (1.02 if "instructions" in key else 1.0):
            if key in ("registers", "shared_bytes") and new["blocks"] >= old["blocks"]:
                continue
            found.append(f"{key} {old[key]} -> {new[key]}")
    found += [f"{key} {old[key]} -> {new[key]}" for key in MUST_NOT_FALL if new[key] < old[key]]
    return found


def show(file: str, architecture: str, kernels: dict[str, dict[str, Any]]) -> None:
    """Print a table."""
    keys = [key for key in next(iter(kernels.values())) if key != "threads"]
    print(f"\n{file}, {architecture}\n| kernel | " + " | ".join(keys).replace("_", " ") + " |")
    print("|" + "---|" * (len(keys) + 1))
    for name, found in kernels.items():
        print(f"| {name} | " + " | ".join(str(found[key]) for key in keys) + " |")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--file", nargs="+", help="sources below csrc (default: all listed)")
    parser.add_argument("--architecture", nargs="+", choices=ARCHITECTURES)
    parser.add_argument("--json", type=Path, help="record to bring up to date")
    parser.add_argument("--list", action="store_true", help="print all kernels, hot or not")
    parser.add_argument(
        "--hot", nargs=3, action="append", metavar=("FILE", "KERNEL", "BYTES"),
        help="a kernel, and the bytes loaded for a unit of its work, instead of those listed",
    )  # fmt: skip
    options = parser.parse_args()
    if missing := lacking():
        print(f"kernels.py: missing here: {missing}", file=sys.stderr)
        return 2
    hot = HOT
    if options.hot:
        hot = {}
        for file, name, bytes_of_unit in options.hot:
            hot.setdefault(file, {})[name] = int(bytes_of_unit)
    record: dict[str, Any] = {}
    if options.json and options.json.exists():
        record = json.loads(options.json.read_text(encoding="utf-8"))
    if record.get("nvcc") != nvcc_version():
        record = {"nvcc": nvcc_version(), "kernels": {}}
    for architecture in options.architecture or list(ARCHITECTURES):
        for file in options.file or list(hot):
            compiled = compile_source(file, architecture)
            if options.list:
                show(file, architecture, compiled.usage)
                continue
            kernels = {
                name: figures(compiled, name, bytes_of_unit, architecture)
                for name, bytes_of_unit in hot.get(file, {}).items()
            }
            if kernels:
                show(file, architecture, kernels)
            spilling = {n: u["spill_bytes"] for n, u in compiled.usage.items() if u["spill_bytes"]}
            print(f"of {len(compiled.usage)} kernels spill: {spilling or 'none'}", flush=True)
            record["kernels"].setdefault(architecture, {})[file] = kernels
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
