"""The record of a benchmark: its formula, figures, machine and command."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from largebatch._cores import usable_cores
from largebatch._errors import UserError
from largebatch.record.files import read_file, write_atomically
from largebatch.record.json_text import json_text, parse_json


@dataclass
class BenchmarkRecord:
    """A measurement that someone else can repeat.

    Args:
        name: what was measured (``loop``, ``data``, ``allreduce``, ...).
        formula: how each reported number is computed, in words and units.
        rows: one mapping of names to values for each case, baselines among them.
        environment: see ``environment``.
        notes: what a reader must know to judge the numbers.
        details: the data behind the rows, for charts; not part of the table.
    """

    name: str
    formula: str
    rows: list[dict[str, Any]]
    environment: dict[str, Any] = field(default_factory=lambda: environment())
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def table(self) -> str:
        """Return formula, rows and notes as plain text for a terminal."""
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        cells = [names] + [[str(row.get(name, "")) for name in names] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
            for line in cells
        ]
        return "\n".join([self.formula, *lines, *self.notes])

    def markdown(self, columns: Sequence[str] = ()) -> str:
        """Return the rows as a Markdown table; fractions have four digits.

        Args:
            columns: the names to show, in this order; by default all.
        """
        names = columns or list(dict.fromkeys(name for row in self.rows for name in row))
        return markdown_table(names, [[row.get(name) for name in names] for row in self.rows])


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table in Markdown; None is an empty cell."""
    lines = [[str(name) for name in head], ["---"] * len(head)]
    lines += [[_cell(value) for value in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:,.4g}" if isinstance(value, float) and abs(value) < 1000 else str(value)
    text = f"{value:,.0f}" if isinstance(value, float) and abs(value) >= 1000 else text
    return " ".join(text.replace("|", "\\|").split())


def environment(command: Sequence[str] | None = None) -> dict[str, Any]:
    """Return hardware, versions, command and date, without names or paths of this machine.

    Args:
        command: the command line; None: that of this process.
    """
    import torch

    from largebatch import __version__

    return {
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "memory_gib": memory_gib(),
        "gpus": [
            torch.cuda.get_device_name(index)
            for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
        ],
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "largebatch": __version__,
        "git_commit": git_commit(),
        "threads": torch.get_num_threads(),
        "command": _without_folders(sys.argv if command is None else command),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def write_record(path: str | Path, record: BenchmarkRecord) -> None:
    """Write a record as JSON, completely or not at all.

    Raises:
        UserError: ``path`` cannot be written.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(Path(path), json_text(asdict(record), indented=True) + "\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def read_record(path: str | Path) -> BenchmarkRecord:
    """Read a record.

    Raises:
        UserError: the file is absent or not a record.
    """
    try:
        found = parse_json(read_file(Path(path)))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: not a benchmark record ({error})") from None
    for wrong in _mistakes(found):
        raise UserError(f"{path}: not a benchmark record ({wrong})")
    return BenchmarkRecord(**found)


def _mistakes(found: Any) -> Iterator[str]:
    """Yield what keeps a JSON value from being a record, in words."""
    if not isinstance(found, dict):
        yield "no mapping"
        return
    known = {each.name: each for each in fields(BenchmarkRecord)}
    for name in found.keys() - known.keys():
        yield f"unknown key {name!r}"
    for name in ("name", "formula", "rows"):
        if name not in found:
            yield f"{name} is missing"
        elif name != "rows" and not isinstance(found[name], str):
            yield f"{name} is no text"
    rows, notes = found.get("rows"), found.get("notes", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        yield "rows are no list of mappings"
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        yield "notes are no list of texts"
    for name in ("environment", "details"):
        if not isinstance(found.get(name, {}), dict):
            yield f"{name}: no mapping"


def cpu_model() -> str:
    """Return the processor's name, or its architecture if the kernel gives no name."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith(("model name", "Model")):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def memory_gib() -> float:
    """Return the machine's memory in GiB, or the container's limit if lower."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        memory = min(memory, int(limit))
    except (OSError, ValueError):
        pass  # no control group, or "max"
    return round(memory / 2**30, 1)


def git_commit() -> str | None:
    """Return the commit of the source tree, with ``+`` if it has changes; None outside one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit, changes = (
            subprocess.run(
                ["git", *arguments],
                cwd=root,
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            ).stdout.strip()
            for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changes else "")


def _without_folders(command: Sequence[str]) -> str:
    """Keep what a reader can repeat: absolute paths shrink to their last part."""
    words = []
    for word in command:
        key, equals, value = word.rpartition("=")
        words.append(key + equals + (Path(value).name if value.startswith("/") else value))
    return shlex.join(words)
