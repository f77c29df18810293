"""Load torch, which takes nearly all of a command's start time."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading_torch() -> Iterator[None]:
    """Exclude torch's modules from garbage collection: while loading, later and at the end.

    Torch's modules are half a million objects that all stay alive, and searching them took a third
    of the start time. On a terminal a message is shown meanwhile.
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
