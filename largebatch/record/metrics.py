"""Write and read metrics.jsonl: one JSON object per line; the reader skips damaged lines."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from largebatch._errors import UserError
from largebatch.record.files import open_regular, read_file, write_atomically
from largebatch.record.json_text import is_number, json_text, parse_json

Value: TypeAlias = "float | int | str | list[Value] | dict[str, Value] | None"


SIDE = {"probes": "train", "also": "val"}
"""Lines of their own for figures whose usual line was not due: of a step, of an evaluation."""

OF_LAYERS = ("layers", "noise")
"""Splits of layers.jsonl: three numbers for each tensor."""


class MetricsWriter:
    """Appends lines to metrics.jsonl.

    Each line is one ``write`` to the kernel without buffering, so a killed process loses no line.
    ``sync`` writes the lines to disk, and is called before a checkpoint is saved. A line costs
    about 10 microseconds.

    Args:
        path: path of the file, which is made if absent.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # A pipe in its place is not to be waited for.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
        self._file = os.open(path, flags, 0o666)

    def write(self, values: Mapping[str, Value]) -> None:
        """Append one line; a number that is not finite becomes null, which JSON can hold.

        Args:
            values: the figures; must include ``samples`` (int) and ``split`` (``train``, ``val``,
                ``hardware``, ...).

        Raises:
            OSError: the disk is full.
        """
        data = (json_text(values) + "\n").encode()
        written = os.write(self._file, data)
        if written != len(data):
            # The disk has filled up within the line: the next write reports why.
            os.write(self._file, data[written:])

    def truncate_after(self, samples: int) -> str | None:
        """Prepare to resume at ``samples``; return a message about lines put aside, if any.

        Lines of steps past ``samples``, which will be repeated, are removed, and so is an
        incomplete last line. Damaged lines before them are kept. If the run starts over at 0, or if
        a damaged line would be removed, the whole old file is kept. Its name is ``metrics-1.jsonl``
        or the next free number.

        Raises:
            OSError: the file cannot be read and truncated.
        """
        keep = place = 0
        damaged = False  # among the lines after those to keep
        with open_regular(self.path) as file:
            for line in file:
                place += len(line)
                values = decode(line)
                if values is not None and values["samples"] <= samples:
                    keep, damaged = place, False
                elif values is None and line.endswith(b"\n"):
                    damaged = True
        told = None
        if keep < place and (damaged or samples == 0):
            kept = _free_name(self.path)
            write_atomically(kept, read_file(self.path))
            why = "it has damaged lines" if samples else "the run starts over"
            told = f"{self.path.name} as it was is kept as {kept.name}: {why}"
        os.ftruncate(self._file, keep)
        return told

    def sync(self) -> None:
        """Sync all lines to disk."""
        os.fsync(self._file)

    def close(self) -> None:
        """Sync all lines to disk and close the file; call this once."""
        os.fsync(self._file)
        os.close(self._file)


def read_metrics(
    path: str | Path, report: Callable[[str], None] | None = None
) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl as dictionaries, in order.

    An incomplete last line, left by a kill, is skipped. If there are several lines of one split
    (and rank) at the same samples, from an evaluation repeated after a resume, the last counts.

    Args:
        report: called with a message about damaged lines that are left out; None: damaged lines are
            an error.

    Raises:
        UserError: the file is absent, or damaged elsewhere than in its last line.
    """
    path = Path(path)
    try:
        content = read_file(path).splitlines(keepends=True)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    lines: dict[tuple[str, int, int | None], dict[str, Any]] = {}
    damaged = []
    for number, line in enumerate(content, 1):
        values = decode(line)
        if values is not None:
            key = (values["split"], values["samples"], values.get("rank"))
            lines.pop(key, None)
            lines[key] = values
        elif line.endswith(b"\n"):
            damaged.append(number)
    if report is None:
        if damaged and damaged[0] < len(content):
            raise UserError(f"{path}: line {damaged[0]} is damaged")
    elif damaged:
        shown = ", ".join(map(str, damaged[:5]))
        more = f" and {len(damaged) - 5:,} more" if len(damaged) > 5 else ""
        report(f"{path.name}: left out as damaged: line {shown}{more}, of {len(content):,}")
    return list(lines.values())


def decode(line: bytes) -> dict[str, Any] | None:
    """Return the values of a complete line with a place in a run; None for other lines."""
    if not line.endswith(b"\n"):
        return None
    try:
        values = parse_json(line)
    except ValueError:
        return None
    if not isinstance(values, dict) or not isinstance(values.get("split"), str):
        return None
    whole = [values.get("samples"), values.get("rank", 0)]
    if not all(isinstance(n, int) and 0 <= n < 2**63 and is_number(n) for n in whole):
        return None
    placed = all(is_number(values.get(key, 0)) for key in ("step", "epoch"))
    return values if placed and _complete(values) else None


def _complete(values: dict[str, Any]) -> bool:
    """Whether a line has what its split needs."""
    if values["split"] == "hardware":
        return "rank" in values
    if values["split"] not in OF_LAYERS:
        return True
    layers = values.get("layers")
    return isinstance(layers, dict) and all(
        isinstance(norms, list)
        and len(norms) == 3
        and all(norm is None or isinstance(norm, (int, float)) for norm in norms)
        for norms in layers.values()
    )


def _free_name(path: Path) -> Path:
    number = 1
    while (kept := path.with_name(f"{path.stem}-{number}{path.suffix}")).exists():
        number += 1
    return kept
