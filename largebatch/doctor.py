"""The command ``largebatch doctor``: list what this machine has for a run, and what is absent.

For absent things it tells why they are absent and whether this matters.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import IO, Literal

from largebatch import __version__
from largebatch._cores import usable_cores
from largebatch.record import json_text
from largebatch.record.benchmark import cpu_model, memory_gib

Status = Literal["ok", "absent", "problem"]

OLDEST_PYTHON, OLDEST_TORCH = (3, 10), (2, 11)
SMALL_SHARED_MEMORY = 0.25  # GiB; Docker gives 64 MiB unless asked


@dataclass(frozen=True)
class Check:
    """One line of the table.

    Args:
        name: what was looked for.
        status: ``ok``, ``absent`` (missing, but not a fault) or ``problem`` (to be corrected).
        value: what was found; empty if nothing.
        reason: why it is absent or a problem, or other information.
    """

    name: str
    status: Status
    value: str = ""
    reason: str = ""


def collect() -> list[Check]:
    """Check this machine. Needs no GPU, changes nothing, and raises nothing on odd machines."""
    probes: dict[str, Callable[[], list[Check]]] = {
        "Python": _python,
        "largebatch": lambda: [Check("largebatch", "ok", __version__)],
        "torch": _torch,
        "processor": _processor,
        "memory": _memory,
        "allocator": _allocator,
        "C++ compiler": _compilers,
        "CUDA toolkit": _cuda_toolkit,
        "CUDA driver": _cuda_driver,
        "GPUs": _gpus,
        "operators": _operators,
        "torus schedule": _torus_schedule,
        "communication": _communication,
        "launchers": _launchers,
        "libraries": _libraries,
        "apex": _apex,
    }
    checks = []
    for name, probe in probes.items():
        try:
            checks += probe()
        except Exception as error:  # a table with a hole is worth more than a traceback
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            checks.append(Check(name, "problem", "", reason))
    return checks


def print_table(checks: Sequence[Check], file: IO[str] | None = None) -> None:
    """Print the checks as a table."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    marks = {"ok": ("ok", "green"), "absent": ("absent", "dim"), "problem": ("problem", "bold red")}
    console = Console(file=file, highlight=False)
    if not console.is_terminal:
        console = Console(file=file, highlight=False, width=140)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("", "", "found", "reason"):
        table.add_column(column, overflow="fold", no_wrap=column == "")
    for check in checks:
        mark, style = marks[check.status]
        cells = (check.name, Text(mark, style), check.value, Text(check.reason, "dim"))
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))
    console.print(table)


def to_json(checks: Sequence[Check]) -> str:
    """Return the checks as JSON."""
    report = {"largebatch": __version__, "checks": [asdict(check) for check in checks]}
    return json_text(report, indented=True)


def _python() -> list[Check]:
    version = f"{platform.python_implementation()} {platform.python_version()}"
    system = f"{platform.system()} {platform.machine()}"
    old = tuple(map(int, platform.python_version_tuple()[:2])) < OLDEST_PYTHON
    foreign = platform.system() != "Linux"
    return [
        Check("Python", "problem", version, "3.10 or newer is supported")
        if old
        else Check("Python", "ok", version),
        Check("system", "problem", system, "Linux is supported")
        if foreign
        else Check("system", "ok", system),
    ]


def _torch() -> list[Check]:
    import torch

    found = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if found and tuple(map(int, found.groups())) < OLDEST_TORCH:
        return [Check("torch", "problem", torch.__version__, "2.11 or newer is supported")]
    cuda = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
    return [Check("torch", "ok", torch.__version__, cuda)]


def _processor() -> list[Check]:
    cores, threads = usable_cores(), os.environ.get("OMP_NUM_THREADS")
    note = f"OMP_NUM_THREADS={threads}" if threads else ""
    return [Check("processor", "ok", f"{cpu_model()}, {cores} cores usable", note)]


def _memory() -> list[Check]:
    checks = [Check("memory", "ok", f"{memory_gib():g} GiB")]
    shared = Path("/dev/shm")
    if not shared.is_dir():
        return [*checks, Check("shared memory", "problem", "", "no /dev/shm for data workers")]
    size = shutil.disk_usage(shared).total / 2**30
    if size < SMALL_SHARED_MEMORY:
        reason = "data workers hand over batches through it; docker run --shm-size=8g"
        return [*checks, Check("shared memory", "problem", f"{size:.2g} GiB", reason)]
    return [*checks, Check("shared memory", "ok", f"{size:.3g} GiB")]


def _allocator() -> list[Check]:
    """Say whether training on CPU can keep freed memory warm, which takes glibc's ``mallopt``."""
    library = " ".join(part for part in platform.libc_ver() if part) or "an unknown C library"
    settings = [f"{key}={value}" for key, value in os.environ.items() if key.startswith("MALLOC_")]
    settings += [f"GLIBC_TUNABLES={value}" for value in [os.environ.get("GLIBC_TUNABLES")] if value]
    preloaded = re.findall(r"(jemalloc|tcmalloc|mimalloc)", os.environ.get("LD_PRELOAD", ""))
    note = ", ".join(settings)
    if preloaded:
        reason = ", ".join(["it has its own rules for freed memory", *settings])
        return [Check("allocator", "ok", preloaded[0], reason)]
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        reason = "no mallopt: freed memory cannot be kept warm, which slows training on CPU"
        return [Check("allocator", "absent", library, reason)]
    value = f"{library}, freed memory is kept warm while training on CPU"
    return [Check("allocator", "ok", value, note)]


def _compilers() -> list[Check]:
    name = os.environ.get("CXX", "g++")
    path = shutil.which(name)
    if path is None:
        reason = f"{name} is not on PATH: ops are not compiled, the reference ops serve"
        return [Check("C++ compiler", "absent", "", reason)]
    return [Check("C++ compiler", "ok", f"{name} {_output([path, '-dumpfullversion'])}".strip())]


def _cuda_toolkit() -> list[Check]:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    nvcc = shutil.which("nvcc") or shutil.which(str(Path(home) / "bin" / "nvcc"))
    if nvcc is None:
        reason = "nvcc is neither on PATH nor in CUDA_HOME: CUDA kernels are not compiled"
        return [Check("CUDA toolkit", "absent", "", reason)]
    found = re.search(r"release [\d.]+, V([\d.]+)", _output([nvcc, "--version"]))
    if found is None:
        return [Check("CUDA toolkit", "problem", nvcc, "nvcc --version does not answer")]
    return [Check("CUDA toolkit", "ok", f"nvcc {found[1]}")]


def _cuda_driver() -> list[Check]:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return [Check("CUDA driver", "absent", "", "libcuda.so.1 is not installed")]
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return [Check("CUDA driver", "problem", "", "cuDriverGetVersion fails")]
    number = _first_match("/proc/driver/nvidia/version", r"Module(?: for \S+)?\s+([\d.]+)")
    cuda = f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"
    return [Check("CUDA driver", "ok", f"{number}, {cuda}" if number else cuda)]


def _gpus() -> list[Check]:
    import torch

    if not torch.backends.cuda.is_built():
        return [Check("GPUs", "absent", "", "this torch is a CPU build")]
    if not torch.cuda.is_available():
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        hidden = f"; CUDA_VISIBLE_DEVICES={seen!r}" if seen is not None else ""
        status: Status = "problem" if Path("/dev/nvidia0").exists() else "absent"
        reason = f"torch finds no usable NVIDIA GPU{hidden}; training runs on CPU"
        return [Check("GPUs", status, "", reason)]
    checks = []
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        value = f"{found.name}, {found.total_memory / 2**30:.0f} GiB, sm_{found.major}{found.minor}"
        checks.append(Check(f"GPU {index}", "ok", value))
    return checks


def _operators() -> list[Check]:
    """One line for each face: how many operators have it, and why others lack it."""
    from largebatch._ops import backends

    table = backends()
    checks = []
    for face, name in (("cpu", "CPU ops"), ("cuda", "CUDA ops")):
        states = {operator: faces.get(face, "") for operator, faces in table.items()}
        lacking = {operator: state for operator, state in states.items() if state != "yes"}
        present = [operator for operator in states if operator not in lacking]
        reasons = dict.fromkeys(state or "not in this build" for state in lacking.values())
        if not lacking:
            checks.append(Check(name, "ok", f"compiled: {', '.join(present)}"))
        else:
            value = f"compiled: {', '.join(present)}" if present else ""
            reason = f"the reference serves {', '.join(lacking)}: {'; '.join(reasons)}"
            checks.append(Check(name, "absent", value, reason))
    return checks


def _torus_schedule() -> list[Check]:
    """Say whether the C++ face of the torus is there; nothing is compiled here."""
    from largebatch._ops import torus_library

    state = torus_library.state()
    if state == "compiled":
        return [Check("torus schedule", "ok", "compiled for this torch")]
    if state == "not yet":
        reason = "compiled on first use, in about a minute; largebatch doctor --build does it now"
    else:
        reason = f"the schedule in Python serves: {state}; largebatch doctor --build tries again"
    return [Check("torus schedule", "absent", "", reason)]


def _communication() -> list[Check]:
    import torch
    import torch.distributed as distributed

    if not distributed.is_available():
        return [Check("torch.distributed", "problem", "", "this torch is built without it")]
    checks = []
    if distributed.is_nccl_available():
        checks.append(Check("NCCL", "ok", ".".join(map(str, torch.cuda.nccl.version()))))
    else:
        checks.append(Check("NCCL", "absent", "", "this torch is built without it; CPU uses gloo"))
    if distributed.is_gloo_available():
        checks.append(Check("gloo", "ok"))
    else:
        checks.append(Check("gloo", "problem", "", "this torch is built without it"))
    if distributed.is_mpi_available():
        checks.append(Check("MPI back end", "ok"))
    else:
        reason = "this torch is built without it; not needed, mpirun starts gloo and NCCL ranks too"
        checks.append(Check("MPI back end", "absent", "", reason))
    return checks


def _launchers() -> list[Check]:
    checks = []
    for program, name in (("mpirun", "MPI launcher"), ("srun", "Slurm launcher")):
        path = shutil.which(program)
        if path is None:
            checks.append(Check(name, "absent", "", f"{program} is not on PATH"))
        else:
            first = (_output([path, "--version"]).splitlines() or [program])[0]
            checks.append(Check(name, "ok", first))
    return checks


def _libraries() -> list[Check]:
    """Look at installed packages without importing them: some take seconds or a GPU."""
    return [
        _package("torchvision", "torchvision", ["torchvision"], "image data and ResNets need it"),
        _package(
            "DALI",
            "nvidia.dali",
            ["nvidia-dali-cuda130", "nvidia-dali-cuda120", "nvidia-dali-cuda110"],
            "not installed: pip install 'largebatch[dali]'",
        ),
        _package(
            "DeepSpeed",
            "deepspeed",
            ["deepspeed"],
            "not installed: pip install 'largebatch[deepspeed]'",
        ),
        _package("NVML", "pynvml", ["nvidia-ml-py"], "not installed: no readings of GPUs"),
    ]


def _apex() -> list[Check]:
    """Tell NVIDIA's apex from the unrelated package of that name on the package index."""
    folder = _folder("apex")
    if folder is None:
        return [Check("apex", "absent", "", "not installed; only comparisons use it")]
    version = _version(["apex"])
    if not (folder / "multi_tensor_apply").is_dir():
        reason = "another project of that name; NVIDIA's is built from github.com/NVIDIA/apex"
        return [Check("apex", "absent", version, reason)]
    if importlib.util.find_spec("amp_C") is None:
        return [Check("apex", "ok", f"NVIDIA's {version}".strip(), "without its compiled kernels")]
    return [Check("apex", "ok", f"NVIDIA's {version}".strip())]


def _package(name: str, module: str, distributions: Sequence[str], why: str) -> Check:
    if _folder(module) is None:
        return Check(name, "absent", "", why)
    return Check(name, "ok", _version(distributions) or "of unknown version")


def _folder(module: str) -> Path | None:
    """Return where a package lies, without importing it."""
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    if found is None:
        return None
    places = list(found.submodule_search_locations or [])
    return Path(places[0]) if places else None


def _version(distributions: Sequence[str]) -> str:
    for distribution in distributions:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return ""


def _output(command: Sequence[str]) -> str:
    """Return what a program prints; nothing if it fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _first_match(path: str, pattern: str) -> str:
    try:
        found = re.search(pattern, Path(path).read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ""
    return found[1] if found else ""
