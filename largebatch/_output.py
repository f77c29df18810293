"""Handle standard output and error that cannot be written, without ending a run.

``| head -1`` closes the pipe, a dropped connection takes the terminal, a log fills its disk. If the
output is the result of a command, its loss is a failure with a one-line message. During training,
lines that cannot be written are dropped, and the exit code is that of the work: a progress line is
no reason to stop a job on many machines.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any, TextIO

from largebatch._errors import RunFailure


class _Stream(io.FileIO):
    """A descriptor whose writes succeed, but for the first that does not if it is not forgiven."""

    forgiven = True

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        try:
            written = super().write(data)
        except OSError as error:
            if not self.forgiven:
                self.forgiven = True  # to say it once is enough
                raise RunFailure(f"standard output: {error.strerror or error}") from error
            return size
        return size if written is None else written  # None: it would have to wait


def take_streams() -> None:
    """Make a lost standard output raise :class:`RunFailure` once; ignore a lost error stream.

    Closed descriptors 0 to 2 are opened on the null device, before a file takes their number.
    Streams that a program has replaced by its own are left alone.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # which takes the lowest that is free
    if sys.stdout is sys.__stdout__:
        sys.stdout = _taken(sys.stdout, 1, forgiven=False)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _taken(sys.stderr, 2, forgiven=True)


def forgive_lost_output() -> None:
    """From now on, drop text that standard output does not take."""
    take_streams()
    buffer = getattr(sys.stdout, "buffer", None)
    raw = getattr(buffer, "raw", buffer)
    if isinstance(raw, _Stream):
        raw.forgiven = True


def _taken(stream: TextIO | None, number: int, forgiven: bool) -> TextIO:
    if stream is not None:
        with contextlib.suppress(OSError):
            stream.flush()
        with contextlib.suppress(OSError, AttributeError):
            number = stream.fileno()
    raw = _Stream(number, "w", closefd=False)
    raw.forgiven = forgiven
    direct = getattr(stream, "write_through", False)  # PYTHONUNBUFFERED
    return io.TextIOWrapper(
        raw if direct else io.BufferedWriter(raw),
        encoding=getattr(stream, "encoding", None),
        errors="backslashreplace",  # what the encoding lacks is no reason to stop, either
        line_buffering=getattr(stream, "line_buffering", False),
        write_through=direct,
    )
