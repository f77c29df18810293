"""Decide for which GPUs the compiled library has code."""

from __future__ import annotations

import re
from collections.abc import Iterable


def has_code(architectures: Iterable[str], capability: tuple[int, int]) -> bool:
    """Return whether a GPU can run what was compiled for ``architectures``.

    Machine code runs on its own version and on later minor versions. PTX runs on all later
    versions. Code of a version with a letter (``9.0a``) runs on this version alone. Source: CUDA
    C++ programming guide, section 3.1.

    Args:
        architectures: architectures in torch's form, ``8.0`` or ``9.0+PTX``.
        capability: (major, minor) of the GPU.
    """
    for name in architectures:
        found = re.fullmatch(r"(\d+)\.(\d+)([a-z]?)(\+PTX)?", name)
        if found is None:  # nvcc took it, so it is for some GPU
            return True
        built = int(found[1]), int(found[2])
        if built == capability:
            return True
        if not found[3] and built < capability and (found[4] or built[0] == capability[0]):
            return True
    return False


def without_code(architectures: list[str], capabilities: Iterable[tuple[int, int]]) -> str:
    """Return why the kernels cannot serve GPUs of ``capabilities``, or '' if they can."""
    lacking = sorted({each for each in capabilities if not has_code(architectures, each)})
    if not lacking:
        return ""
    names = ", ".join(f"{major}.{minor}" for major, minor in lacking)
    built = ", ".join(architectures)
    return f"built for compute capability {built}, but a GPU here has {names}"
