"""The CUDA kernels on a CPU: ``csrc``'s own ``.cu`` files and host sides, compiled by g++.

The sources are copied and rewritten a little (``__shared__``, ``__grid_constant__``), and found
together with the headers in ``shim``, where every CUDA thread is a fiber (``shim/machine.h``). The
library defines the operators again, as ``torch.ops.largebatch_emulation``, with the functions of
the CUDA back end for tensors of the CPU. :func:`serving` lets them stand in for the CPU kernels, so
that any test of the operators becomes a test of the CUDA kernels. Not emulated: time, caches, the
order of atomics, streams and graphs, what nvcc itself does.

Objects are kept in ``build/cuda_emulation`` by a hash of all that they are made of.

    python tests/cuda_emulation/emulation.py            # build the library, print its path
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import importlib.util
import os
import re
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SHIM, CSRC = HERE / "shim", ROOT / "csrc"
KEPT = ROOT / "build" / "cuda_emulation"
COMMON = ("-std=c++17", "-fPIC", "-w", "-fvisibility=hidden", "-ffp-contract=off")
KERNELS = ("-O1", "-fno-math-errno")
HOST = ("-O0",)  # compiled once, run for microseconds


def _shared(match: re.Match[str]) -> str:
    """Turn declarations of shared variables into references to memory of the block."""
    first, *more = match[2].split(",")
    kind, name = re.fullmatch(r"(.+?)\s+(\w+(?:\[.*\])?)", first).groups()  # type: ignore[union-attr]
    lines = []
    for each in [name, *(other.strip() for other in more)]:
        variable, size = re.fullmatch(r"(\w+)(\[.*\])?", each).groups()  # type: ignore[union-attr]
        lines.append(
            f"static emulation::Shared {variable}_shared; "
            f"auto& {variable} = emulation::shared_in<{kind}{size or ''}>({variable}_shared);"
        )
    return match[1] + " ".join(lines)


def rewritten(text: str) -> str:
    """Return a CUDA source as C++, line by line."""
    text = re.sub(
        r"extern __shared__ (?:__align__\(\d+\) )?unsigned char (\w+)\[\];",
        r"unsigned char* const \1 = emulation::dynamic_shared();",
        text,
    )
    text = re.sub(r"(?m)^(\s*)__shared__ (.+?);$", _shared, text)
    return re.sub(r"const __grid_constant__ ([\w<>]+) (\w+)", r"const \1& \2", text)


def namespace(*flags: str) -> str:
    """Return the name under which torch has the operators of a build."""
    return f"largebatch_emulation_{_digest(*flags)}" if flags else "largebatch_emulation"


def sources(*flags: str) -> dict[str, str]:
    """Return what is compiled, or included, of ``csrc``: texts by their paths there."""
    texts = {}
    for path in sorted(CSRC.rglob("*.*")):
        name = path.relative_to(CSRC).as_posix()
        replaced = (SHIM / name).exists()
        own_cpu = path.suffix == ".cpp" and "cpu" in path.stem
        if replaced or own_cpu or path.parent.name == "comm":
            continue
        text = path.read_text(encoding="utf-8")
        if name == "ops.cpp":
            text = re.sub(r"_cpu\b", "_cuda", text)
            text = re.sub(
                r"(STABLE_TORCH_LIBRARY(?:_IMPL)?)\(largebatch\b", rf"\1({namespace(*flags)}", text
            )
        text = f'#line 1 "csrc/{name}"\n{rewritten(text)}'
        texts[name.replace(".cu", "_kernels.cpp") if path.suffix == ".cu" else name] = text
    return texts


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _torch() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def build(*flags: str, driver: str = "") -> Path:
    """Compile what is not kept yet; return the library, or a ``driver``, which needs no torch.

    Args:
        flags: of the kernels, the machine and the driver, beside the usual ones.
        driver: a program to build instead of the operators, ``driver.cpp`` or ``mistakes.cpp``.
    """
    compiler = os.environ.get("CXX", "g++")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    shim = {
        path.relative_to(SHIM).as_posix(): path.read_text() for path in sorted(SHIM.rglob("*.*"))
    }
    texts, torch = sources(*flags), _torch()
    headers = _digest(*(f"{n}:{t}" for n, t in {**texts, **shim}.items() if not n.endswith(".cpp")))
    kernels = [name for name in texts if name.endswith("_kernels.cpp")]
    hosts = [name for name in texts if name.endswith(".cpp") and name not in kernels]
    usual = [compiler, *COMMON]
    device = [*usual, *KERNELS, *flags]
    # All host sides are one source: most of their time goes into reading torch's headers.
    host_text = "".join(f'#include "{name}"\n' for name in hosts)
    host = [*usual, *HOST, "-DTORCH_TARGET_VERSION=0x020b000000000000", "-DLARGEBATCH_CUDA"]
    host += ["-isystem", str(torch / "include")]
    units = [(device, name, texts[name]) for name in kernels]
    # ThreadSanitizer watches CUDA's threads, not the machine that is beneath them.
    machine = ["-D__SANITIZE_THREAD__" if f == "-fsanitize=thread" else f for f in device]
    units.append((machine, "machine.cpp", shim["machine.cpp"]))
    if driver:
        units.append((device, driver, (HERE / driver).read_text(encoding="utf-8")))
    else:
        units.append((host, "host.cpp", host_text + "".join(texts[name] for name in hosts)))

    KEPT.mkdir(parents=True, exist_ok=True)
    with open(KEPT / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one of several test workers builds
        written = KEPT / _digest(headers, *texts.values())
        for name, text in {**texts, "host.cpp": host_text}.items():
            (written / name).parent.mkdir(parents=True, exist_ok=True)
            if not (written / name).exists():
                (written / name).write_text(text, encoding="utf-8")
        objects = []
        for command, name, text in units:
            key = _digest(version.stdout, str(torch), *command, headers, name, text)
            target = KEPT / f"{name.replace('/', '_')}.{key}.o"
            objects.append(str(target))
            if not target.exists():
                at = {"machine.cpp": SHIM, driver: HERE}.get(name, written) / name
                made = target.with_suffix(".partial")
                include = [f"-I{SHIM}", f"-I{written}"]
                _compile([*command, *include, "-c", str(at), "-o", str(made)])
                made.rename(target)
        target = KEPT / f"{driver or 'library.so'}.{_digest(*objects)}"
        if not target.exists():
            made = target.with_suffix(".partial")
            link = [*device, *objects, "-o", str(made)]
            if not driver:
                link += ["-shared", f"-L{torch / 'lib'}", "-ltorch_cpu"]
            _compile(link)
            made.rename(target)
    return target


def _compile(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-4000:]}")


@functools.cache
def loaded(*flags: str) -> Any:
    """Return the library, as :func:`build` makes it, having registered its operators with torch."""
    import torch

    path = build(*flags)
    torch.ops.load_library(str(path))
    library = ctypes.CDLL(str(path))
    library.emulation_launches.restype = ctypes.c_uint64
    library.emulation_order.argtypes = [ctypes.c_char_p]
    return library


@contextlib.contextmanager
def serving(*flags: str) -> Iterator[Any]:
    """Let the CUDA kernels serve tensors of the CPU within; give :func:`loaded`."""
    import torch

    from largebatch import _ops

    library = loaded(*flags)
    instead = torch.library.Library("largebatch", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a kernel is replaced, which is what is meant
            for name in _ops.OPERATORS:
                packet = getattr(getattr(torch.ops, namespace(*flags)), name, None)
                if packet is not None:
                    instead.impl(name, packet.default, "CPU", allow_override=True)
        yield library
    finally:
        instead._destroy()


if __name__ == "__main__":
    print(build())
