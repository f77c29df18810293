"""Loading torch, which is nearly all of a command's start."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading_torch() -> Iterator[None]:
    """Look for no garbage among torch's modules: not while they load, not later, not at the end.

    They are half a million objects that all stay, and looking through them was a third of a start.
    A terminal says so meanwhile.
    """
    if "torch" in sys.modules:  # a Python program's own: what is garbage there is not ours to say
        yield
        return
    gc.disable()
    told = sys.stderr.isatty()
    if told:  # from a disk that is cold or far away it takes long
        print("loading torch ...", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if told:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
        gc.freeze()
        gc.enable()
        atexit.register(_let_go)


def _let_go() -> None:
    """Let the collector see all again where Triton is: it prints pages about objects that stay."""
    if "triton" in sys.modules:
        gc.unfreeze()
