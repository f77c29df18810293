"""Build, GPU tests and GPU benchmarks in one go, each part in a process of its own.

Run by gpu.sh. A part is a line of ``PARTS``: a new kernel family enters its tests by the marker
``gpu`` and its benchmark here. What a part's seconds or the whole's do not reach, and what a
machine lacks, is written down as not run, with the reason.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("torch", "numpy", "pytest", "hypothesis", "safetensors", "torchvision", "PIL")
BENCH = ("-m", "largebatch", "bench")
TESTS = ("-m", "pytest", "-o", "addopts=", "-q", "--junitxml", "{xml}")
HALF_SECONDS = 300.0


@dataclass(frozen=True)
class Part:
    """One process.

    Attributes:
        arguments: of python. Benchmarks write {json}, tests {xml}.
        seconds: at most.
        half: of the whole, in which it is; 0: of each.
        little: more arguments, or None for none of it, when a machine without a GPU rehearses.
        gpus: how many it needs.
        tool: a program that it needs.
    """

    name: str
    arguments: tuple[str, ...]
    seconds: float
    half: int
    little: tuple[str, ...] | None = ()
    gpus: int = 1
    tool: str | None = None


def sanitizer(tool: str, seconds: float) -> Part:
    """Return the part that runs the kernels under one tool of compute-sanitizer."""
    arguments = ("benchmarks/sanitize.py", "--tool", tool)
    return Part(tool, arguments, seconds, 1, None, tool="compute-sanitizer")


# What shows that the kernels are right comes first. The seconds of a half, with those of each, are
# 300 together.
PARTS = (
    Part("build", ("setup.py", "-q", "build_ext", "--inplace"), 90.0, 0),
    Part("tests", (*TESTS, "-m", "gpu", "tests"), 90.0, 1),
    sanitizer("memcheck", 50.0),  # compiles the driver
    sanitizer("racecheck", 40.0),
    sanitizer("initcheck", 30.0),
    Part(
        "norm",
        (*BENCH, "norm", "--rounds", "9", "--json", "{json}"),
        60.0, 2, ("--rounds", "1"),
    ),
    Part(
        "optim",
        (*BENCH, "optim", "--seconds", "0.1", "--rounds", "5", "--json", "{json}"),
        50.0, 2, ("--models", "resnet50", "--rounds", "1"),
    ),
    Part(
        "torus",
        ("benchmarks/sum_shards.py", "--json", "{json}"),
        20.0, 2, ("--rounds", "1", "--repeats", "1", "--megabytes", "3"),
    ),
    Part(
        "ranks",
        (*BENCH, "scaling", "--ranks", "1", "2", "--batches", "64", "--json", "{json}"),
        40.0, 2, None, gpus=2,
    ),
    Part(
        "hadamard",
        ("benchmarks/hadamard_classifier.py", "--rounds", "15", "--json", "{json}"),
        15.0, 2, ("--rounds", "1"),
    ),
    Part(
        "loop",
        (*BENCH, "loop", "--seconds", "1", "--json", "{json}"),
        25.0, 2, ("--rounds", "1"),
    ),
)  # fmt: skip


def missing(rehearse: bool) -> list[str]:
    """Return what this machine lacks, with the remedy."""
    found = [f"Python package {name}" for name in NEEDED if importlib.util.find_spec(name) is None]
    if not rehearse:
        if shutil.which("nvcc") is None and not os.environ.get("CUDA_HOME"):
            found.append("nvcc (put it on PATH or set CUDA_HOME)")
        if "Python package torch" not in found and not cuda_capability():
            found.append("a CUDA device that torch sees")
    return found


def cuda_capability() -> str:
    """Return the GPU's compute capability, such as 9.0; empty without one."""
    import torch

    if not torch.cuda.is_available():
        return ""
    return ".".join(map(str, torch.cuda.get_device_capability()))


def gpu_count() -> int:
    """Return how many GPUs torch sees."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def unable(part: Part, rehearse: bool) -> str:
    """Return why a part cannot run here, or an empty string."""
    if rehearse:
        return "" if part.little is not None else "a rehearsal has no GPU for it"
    if gpu_count() < part.gpus:
        return f"needs {part.gpus} GPUs, here is {gpu_count()}"
    home = os.environ.get("CUDA_HOME", "")
    if part.tool and not (shutil.which(part.tool) or Path(home, "bin", part.tool).exists()):
        return f"{part.tool} is neither on PATH nor in CUDA_HOME/bin"
    return ""


def run_part(arguments: tuple[str, ...], seconds: float, folder: Path) -> dict[str, Any]:
    """Run python with ``arguments`` for at most ``seconds``; return how it ended."""
    paths = {"json": folder / "record.json", "xml": folder / "tests.xml"}
    command = [sys.executable, *(argument.format(**paths) for argument in arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if capability := cuda_capability():
        environment |= {"LARGEBATCH_CUDA": "1", "TORCH_CUDA_ARCH_LIST": capability}
    begun = time.monotonic()
    try:
        code = subprocess.run(command, cwd=ROOT, timeout=seconds, env=environment).returncode
        ended = "passed" if code == 0 else f"failed: exit code {code}"
    except subprocess.TimeoutExpired:
        ended = f"stopped after {seconds:.0f} s"
    part: dict[str, Any] = {"ended": ended, "seconds": round(time.monotonic() - begun, 1)}
    if paths["json"].exists():
        part["record"] = json.loads(paths["json"].read_text(encoding="utf-8"))
    if paths["xml"].exists():
        part["tests"] = test_counts(paths["xml"])
    return part


def test_counts(path: Path) -> dict[str, Any]:
    """Return the counts of a JUnit file and the names of what did not pass."""
    suite = next(ElementTree.parse(path).getroot().iter("testsuite"))
    counts: dict[str, Any] = {
        name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")
    }
    counts["not passed"] = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in suite.iter("testcase")
        if any(case.find(tag) is not None for tag in ("failure", "error"))
    ]
    return counts


def markdown(parts: dict[str, dict[str, Any]]) -> str:
    """Return a table of the parts, then one of every benchmark's rows."""
    lines = ["| part | ended | seconds |", "|---|---|---|"]
    for name, part in parts.items():
        ended = part["ended"]
        if "tests" in part:
            counts = part["tests"]
            ended += f" ({counts['tests']} tests, {len(counts['not passed'])} not passed, "
            ended += f"{counts['skipped']} skipped)"
        lines.append(f"| {name} | {ended} | {part.get('seconds', '')} |")
    for name, part in parts.items():
        rows = part.get("record", {}).get("rows", [])
        names = list(dict.fromkeys(key for row in rows for key in row))
        if rows:
            lines += ["", f"## {name}", "", part["record"]["formula"], ""]
            lines += ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
            lines += ["| " + " | ".join(str(row.get(k, "")) for k in names) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--half", type=int, choices=(1, 2), help="right (1) or fast (2) alone")
    parser.add_argument("--minutes", type=float, help="at most (default: 5 a half)")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS])
    parser.add_argument(
        "--rehearse", action="store_true", help="without a GPU, as little as can be"
    )
    options = parser.parse_args()
    lacking = missing(options.rehearse)
    if lacking:
        print("gpu.sh: missing here: " + "; ".join(lacking), file=sys.stderr)
        return 2
    chosen = [
        part
        for part in PARTS
        if (options.half is None or part.half in (0, options.half))
        and (not options.only or part.name in options.only)
    ]
    minutes = options.minutes or HALF_SECONDS / 60 * (1 if options.half else 2)
    deadline = time.monotonic() + 60 * minutes
    parts: dict[str, dict[str, Any]] = {}
    for part in chosen:
        print(f"== {part.name}", flush=True)
        left = min(part.seconds, deadline - time.monotonic())
        reason = unable(part, options.rehearse)
        if reason or left <= 0:
            parts[part.name] = {
                "ended": f"not run: {reason or f'the {minutes:g} minutes were over'}"
            }
        else:
            with TemporaryDirectory() as folder:
                more = (part.little or ()) if options.rehearse else ()
                seconds = 60 * minutes if options.rehearse else left
                parts[part.name] = run_part((*part.arguments, *more), seconds, Path(folder))
        options.out.mkdir(parents=True, exist_ok=True)  # what is done is kept, whatever comes next
        (options.out / "gpu.json").write_text(json.dumps(parts, indent=2) + "\n", encoding="utf-8")
        (options.out / "gpu.md").write_text(markdown(parts), encoding="utf-8")
    print(markdown(parts))
    skipped = {
        name: part["ended"].removeprefix("not run: ")
        for name, part in parts.items()
        if part["ended"].startswith("not run")
    }
    for name, reason in skipped.items():
        print(f"skipped {name}: {reason}")
    if not skipped:
        print("skipped nothing")
    ran = [part for name, part in parts.items() if name not in skipped]
    return 0 if ran and all(part["ended"] == "passed" for part in ran) else 1


if __name__ == "__main__":
    sys.exit(main())
