"""Build, GPU tests and GPU benchmarks in one go, each part in a process of its own.

Run by gpu.sh. A part is a line of ``PARTS``: a new kernel family enters its tests by the marker
``gpu`` and its benchmark here. What the time does not reach is written down as not run.
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
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("torch", "numpy", "pytest", "hypothesis", "safetensors", "torchvision", "PIL")
BENCH = ("-m", "largebatch", "bench")
# Name, arguments of python, more arguments of a rehearsal on a CPU. Benchmarks write {json},
# tests {xml}.
PARTS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("build", ("setup.py", "-q", "build_ext", "--inplace"), ()),
    (
        "tests",
        ("-m", "pytest", "-m", "gpu", "-o", "addopts=", "-q", "--junitxml", "{xml}", "tests"),
        (),
    ),
    (
        "optim",
        (*BENCH, "optim", "--seconds", "0.2", "--rounds", "5", "--json", "{json}"),
        ("--models", "resnet50", "--rounds", "1"),
    ),
    ("norm", (*BENCH, "norm", "--rounds", "9", "--json", "{json}"), ("--rounds", "1")),
    (
        "hadamard",
        ("benchmarks/hadamard_classifier.py", "--rounds", "15", "--json", "{json}"),
        ("--rounds", "1"),
    ),
    ("loop", (*BENCH, "loop", "--seconds", "1", "--json", "{json}"), ("--rounds", "1")),
)


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
    parser.add_argument("--minutes", type=float, default=10.0, help="for all parts together")
    parser.add_argument("--only", nargs="+", choices=[part[0] for part in PARTS])
    parser.add_argument(
        "--rehearse", action="store_true", help="without a GPU, as little as can be"
    )
    options = parser.parse_args()
    lacking = missing(options.rehearse)
    if lacking:
        print("gpu.sh: missing here: " + "; ".join(lacking), file=sys.stderr)
        return 2
    deadline = time.monotonic() + 60 * options.minutes
    parts: dict[str, dict[str, Any]] = {}
    for name, arguments, little in PARTS:
        if options.only and name not in options.only:
            continue
        print(f"== {name}", flush=True)
        left = deadline - time.monotonic()
        if left <= 0:
            parts[name] = {"ended": f"not run: the {options.minutes:g} minutes were over"}
            continue
        with TemporaryDirectory() as folder:
            more = little if options.rehearse else ()
            parts[name] = run_part((*arguments, *more), left, Path(folder))
        options.out.mkdir(parents=True, exist_ok=True)  # what is done is kept, whatever comes next
        (options.out / "gpu.json").write_text(json.dumps(parts, indent=2) + "\n", encoding="utf-8")
        (options.out / "gpu.md").write_text(markdown(parts), encoding="utf-8")
    print(markdown(parts))
    return 0 if all(part["ended"] == "passed" for part in parts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
