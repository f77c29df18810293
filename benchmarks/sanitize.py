"""The CUDA kernels on a GPU under compute-sanitizer, by the driver of the emulation's tests.

    python benchmarks/sanitize.py --tool memcheck racecheck initcheck

Every kernel runs on small shapes in memory without a byte to spare. Exit code 0: nothing found; 1:
something was; 3: a tool is missing here.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DRIVER = ROOT / "tests" / "cuda_emulation" / "driver.cpp"
KEPT = ROOT / "build" / "sanitize"
TOOLS = ("memcheck", "racecheck", "initcheck")
FAMILIES = re.findall(r'family == "(\w+)"', DRIVER.read_text(encoding="utf-8"))


def find(name: str) -> str | None:
    """Return a tool of the CUDA toolkit, or None."""
    home = os.environ.get("CUDA_HOME")
    return (shutil.which(name, path=str(Path(home, "bin"))) if home else None) or shutil.which(name)


def build(nvcc: str, capability: str) -> Path:
    """Compile kernels and driver for one GPU, each source a process of its own, if need be."""
    KEPT.mkdir(parents=True, exist_ok=True)
    csrc, driver = ROOT / "csrc", KEPT / f"driver_{capability}"
    newest = max(path.stat().st_mtime for path in [DRIVER, *csrc.rglob("*.*")])
    if driver.exists() and driver.stat().st_mtime > newest:
        return driver
    flags = ["-O3", "-std=c++17", "-lineinfo", f"-I{csrc}", f"-arch=sm_{capability}", "-x", "cu"]
    jobs = []
    for source in [DRIVER, *sorted(csrc.rglob("*.cu"))]:
        target = KEPT / f"{source.parent.name}_{source.stem}.o"
        jobs.append((target, subprocess.Popen([nvcc, *flags, "-c", source, "-o", target])))
    codes = [job.wait() for _, job in jobs]
    if any(codes):
        raise SystemExit(1)
    objects: list[str | Path] = [target for target, _ in jobs]
    link = [nvcc, f"-arch=sm_{capability}", *objects, "-o", driver]
    subprocess.run(link, check=True)
    return driver


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tool", nargs="+", choices=TOOLS, default=TOOLS)
    parser.add_argument("--capability", help="such as 90 (default: of the GPU that torch sees)")
    parser.add_argument("--build-only", action="store_true", help="compile, run nothing")
    options = parser.parse_args()
    nvcc, sanitizer = find("nvcc"), find("compute-sanitizer")
    if nvcc is None or (sanitizer is None and not options.build_only):
        print(f"not here: {'nvcc' if nvcc is None else 'compute-sanitizer'}", file=sys.stderr)
        return 3
    capability = options.capability
    if capability is None:
        import torch

        capability = "".join(map(str, torch.cuda.get_device_capability()))
    driver = build(nvcc, capability)
    if options.build_only:
        print(driver)
        return 0
    failed = []
    for tool in options.tool:
        print(f"-- {tool}", flush=True)
        command = [str(sanitizer), "--tool", tool, "--error-exitcode", "9", str(driver), *FAMILIES]
        if subprocess.run(command).returncode != 0:
            failed.append(tool)
    print(f"found something: {', '.join(failed)}" if failed else "nothing found")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
