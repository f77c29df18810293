"""The C++ implementation of the torus schedule, compiled on first use and cached.

c10d's C++ interface changes between versions of torch, so no wheel can contain the compiled code.
The result is stored in the user's cache under torch's version and a hash of the sources. One
process per host builds it, under a lock, while the others wait. Files that another user may have
written are not loaded.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.machinery
import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from largebatch._cache import cache_folder, trusted
from largebatch._errors import UserError

PACKAGE = Path(__file__).parent.parent
SOURCES = (PACKAGE / "csrc", PACKAGE.parent / "csrc")  # of an installed package, of a clone
MODULE = "largebatch_torus"
FLAGS = ("-O2", "-fvisibility=hidden")


def source() -> Path:
    """Return the file of the schedule in C++, beside its headers."""
    found = [folder / "comm" / "torus.cpp" for folder in SOURCES]
    return next((path for path in found if path.exists()), found[0])


def cache() -> Path:
    """Return the folder of code compiled for these sources, torch and Python."""
    texts = [path.read_bytes() for path in sorted(source().parent.iterdir())]
    content = b"\0".join([*texts, repr((FLAGS, sys.version_info[:2])).encode()])
    name = f"torus-{torch.__version__}-{hashlib.sha256(content).hexdigest()[:16]}"
    return cache_folder(name)


def build() -> str:
    """Compile if needed, which takes half a minute; return why it failed, or ''.

    A failure is remembered in the cache, so that every later start does not wait for it again;
    ``largebatch doctor --build`` tries again.
    """
    try:
        folder = cache()
        with open(folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _built(folder) and not _failure(folder).exists():
                _compile(folder)
        return _failure(folder).read_text() if _failure(folder).exists() else ""
    except OSError as error:
        return f"{type(error).__name__}: {error}"


def rebuild() -> str:
    """Compile even if it failed before; return why it failed, or ''."""
    try:
        _failure(cache()).unlink(missing_ok=True)
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    return build()


def state() -> str:
    """Return ``compiled``, ``not yet``, or why it failed; builds nothing."""
    try:
        folder = cache()
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    if _built(folder):
        return "compiled"
    return _failure(folder).read_text() if _failure(folder).exists() else "not yet"


@functools.cache
def load() -> tuple[Any, str]:
    """Return the compiled module, or None and why it is absent, as LARGEBATCH_OPS asks.

    Raises:
        UserError: ``LARGEBATCH_OPS=compiled``, and the module cannot be built or loaded.
    """
    wish = os.environ.get("LARGEBATCH_OPS", "")
    if wish == "reference":
        return None, "LARGEBATCH_OPS=reference"
    reason = build()
    if not reason:
        try:
            return _import(_library(cache())), ""
        except (ImportError, OSError) as error:
            reason = f"does not load: {error}"
    reason = " ".join(reason.split())[:300]
    if wish == "compiled":
        raise UserError(f"LARGEBATCH_OPS=compiled, but the torus schedule is not: {reason}")
    return None, reason


def _library(folder: Path) -> Path:
    return folder / f"{MODULE}.so"


def _built(folder: Path) -> bool:
    """Return whether the library is there and only this user can have written it."""
    return _library(folder).exists() and trusted(_library(folder))


def _failure(folder: Path) -> Path:
    return folder / "failure.txt"


def _compile(folder: Path) -> None:
    from torch.utils import cpp_extension

    path = os.environ.get("PATH", "")
    if importlib.util.find_spec("ninja"):  # the package's program need not be on PATH
        import ninja

        os.environ["PATH"] = f"{ninja.BIN_DIR}{os.pathsep}{path}"
    try:
        with tempfile.TemporaryDirectory(dir=folder) as build_directory:
            cpp_extension.load(
                MODULE,
                [str(source())],
                extra_cflags=list(FLAGS),
                build_directory=build_directory,
                with_cuda=False,
                is_python_module=False,
                keep_intermediates=False,
            )
            Path(build_directory, f"{MODULE}.so").chmod(0o700)  # whatever the umask
            os.replace(Path(build_directory, f"{MODULE}.so"), _library(folder))
    except Exception as error:  # a compiler can fail in any way; the Python face serves then
        lines = [line for line in str(error).splitlines() if "error" in line.lower()]
        reason = (lines or [f"{type(error).__name__}: {error}"])[0]
        _failure(folder).write_text(" ".join(reason.split())[:300])
    finally:
        os.environ["PATH"] = path


def _import(path: Path) -> Any:
    if not trusted(path):
        raise ImportError(f"others than this user may write {path}")
    loader = importlib.machinery.ExtensionFileLoader(MODULE, str(path))
    spec = importlib.util.spec_from_file_location(MODULE, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
