"""Read how many samples runs needed to reach a target, by batch, from MLPerf or CSV files."""

from __future__ import annotations

import csv
import math
import re
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from largebatch._errors import UserError
from largebatch.record import is_number, parse_json, read_file
from largebatch.train.keys import short

PUBLISHED = "Epochs to converge"  # of MLPerf, whatever the unit
# Of MLPerf's unit: its name and how many samples it is. Not listed: samples.
UNITS = {
    "resnet": ("epochs", 1_281_167.0),
    "ssd": ("epochs", 1_170_301.0),
    "maskrcnn": ("epochs", 117_266.0),
    "gpt3": ("tokens", 1 / 2048),
}
MOST_BATCH, MOST_NEED = 10**12, 10**18  # beyond which a figure is a mistake
BATCHES = "a whole number from 1 to 10^12"
NEEDS = "a number above 0, at most 10^18"
FAR = math.log(2)  # of a run from the median of its batch, or of a batch from its neighbours
DEVIATIONS = 6.0  # robust ones, that an outlier is off besides


@dataclass(frozen=True)
class Cell:
    """The runs of one batch.

    Attributes:
        needed: what each run needed, in the unit of the :class:`Convergence`.
        diverged: number of runs that never reached the target.
        learning_rate: peak rate of the runs; None: not known.
    """

    batch: int
    needed: tuple[float, ...]
    diverged: int = 0
    learning_rate: float | None = None

    @property
    def mean(self) -> float:
        """Mean of ``needed`` over runs."""
        return statistics.fmean(self.needed)

    @property
    def deviation(self) -> float | None:
        """Standard deviation over runs; None for one run."""
        return statistics.stdev(self.needed) if len(self.needed) > 1 else None


@dataclass(frozen=True)
class Convergence:
    """What the runs of one task needed to reach the target, by batch in rising order.

    Attributes:
        unit: unit of the figures: samples, epochs or tokens.
        samples: samples per unit, if batches are counted in samples.
        remarks: batches and runs that were left out or stand out, in words.
    """

    task: str
    cells: tuple[Cell, ...]
    unit: str = "samples"
    samples: float = 1.0
    remarks: tuple[str, ...] = field(default=())

    def without(self, batches: Iterable[int]) -> Convergence:
        """Return a copy without some batches, with a remark."""
        left = sorted(set(batches) & {cell.batch for cell in self.cells})
        kept = tuple(cell for cell in self.cells if cell.batch not in left)
        said = tuple(f"batch {batch:,} left out, as asked" for batch in left)
        return replace(self, cells=kept, remarks=self.remarks + said)

    def without_outliers(self) -> Convergence:
        """Return a copy without outlying runs, with a remark for each; empty cells are removed.

        An outlier lies both a factor of two and six robust standard deviations from the median of
        its batch. The deviation is estimated from all batches together, because the few runs of one
        batch say little about the spread.
        """
        logs = [[math.log(value) for value in cell.needed] for cell in self.cells]
        centres = [statistics.median(each) if each else 0.0 for each in logs]
        distances = [
            abs(value - centre)
            for each, centre in zip(logs, centres, strict=True)
            for value in each
            if len(each) > 2
        ]
        spread = 1.4826 * statistics.median(distances) if distances else math.inf
        far = max(FAR, DEVIATIONS * spread)
        cells, said = [], []
        for cell, centre in zip(self.cells, centres, strict=True):
            kept = []
            for value in cell.needed:
                if len(cell.needed) > 2 and abs(math.log(value) - centre) > far:
                    said.append(
                        f"batch {cell.batch:,}: a run of {value:,.6g} {self.unit} is left out, the"
                        f" median of its {len(cell.needed)} is {math.exp(centre):,.6g}"
                    )
                else:
                    kept.append(value)
            if cell.diverged:
                said.append(
                    f"batch {cell.batch:,}: {cell.diverged} of"
                    f" {cell.diverged + len(cell.needed)} runs never reached the target"
                )
            if kept:
                cells.append(replace(cell, needed=tuple(kept)))
        return replace(self, cells=tuple(cells), remarks=self.remarks + tuple(said))

    def standing_out(self) -> list[str]:
        """Add remarks on batches that need twice or half what their neighbours suggest.

        The worst batch is named first. A named batch no longer counts as a neighbour, or it would
        cast doubt on the batches beside it.
        """
        cells, said = list(self.cells), []
        while len(cells) > 2:
            off = {index: _off(*cells[index - 1 : index + 2]) for index in range(1, len(cells) - 1)}
            worst = max(off, key=lambda index: off[index])
            if off[worst] <= FAR:
                break
            before, cell, after = cells[worst - 1 : worst + 2]
            said.append(
                f"batch {cell.batch:,} needs {cell.mean:,.4g} {self.unit}, its neighbours"
                f" {before.batch:,} and {after.batch:,} need {before.mean:,.4g} and"
                f" {after.mean:,.4g}; --without={cell.batch} leaves it out"
            )
            del cells[worst]
        return said


def read_convergence(files: Sequence[str | Path]) -> list[Convergence]:
    """Read MLPerf's reference convergence points (.json) and tables of batch, seed, samples (.csv).

    If several files have runs of a task at one batch, the newest version counts. The version is the
    folder's name if it is one (``4.0.0``), otherwise the order of the files. A table is a task with
    the file's name. A run without a number in ``samples`` has diverged.

    Raises:
        UserError: a file is absent, has another format or holds impossible values.
    """
    if not files:
        raise UserError("--from: name at least one file")
    tasks: dict[str, dict[int, Cell]] = {}
    for path in sorted((Path(file) for file in files), key=_version):
        read = _table(path) if path.suffix.lower() == ".csv" else _published(path)
        for task, cell in read:
            tasks.setdefault(task, {})[cell.batch] = cell
    return [
        Convergence(
            task,
            tuple(cells[batch] for batch in sorted(cells)),
            *UNITS.get(task, ("samples", 1.0)),
        )
        for task, cells in tasks.items()
    ]


def _version(path: Path) -> tuple[int, ...]:
    numbers = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", path.absolute().parent.name)
    return tuple(map(int, numbers.groups())) if numbers else ()


def _text(path: Path) -> str:
    try:
        return read_file(path).decode("utf-8-sig")  # spreadsheets begin with a mark of order
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise UserError(f"--from {path}: {reason}") from None


def _published(path: Path) -> Iterator[tuple[str, Cell]]:
    try:
        entries = parse_json(_text(path))
    except ValueError as error:
        raise UserError(f"--from {path}: no JSON ({error}); a table ends in .csv") from None
    entries = entries if isinstance(entries, dict) else {}
    found: dict[tuple[str, int], list[float]] = {}
    for name, entry in entries.items():
        if not isinstance(entry, dict) or not {"Benchmark", "BS", PUBLISHED} <= set(entry):
            continue
        batch, needed = entry["BS"], entry[PUBLISHED]
        if not is_number(batch) or not _is_batch(batch):
            raise UserError(f"--from {path}: {name}: BS={short(batch)}: {BATCHES}")
        if not isinstance(needed, list) or not all(_is_needed(value) for value in needed):
            raise UserError(f"--from {path}: {name}: {PUBLISHED}: a list, each {NEEDS}")
        found.setdefault((str(entry["Benchmark"]), int(batch)), []).extend(map(float, needed))
    if not any(found.values()):
        raise UserError(
            f"--from {path}: holds no reference convergence points (Benchmark, BS, {PUBLISHED})"
        )
    for (task, batch), needed in found.items():
        if needed:
            yield task, Cell(batch, tuple(needed))


def _table(path: Path) -> Iterator[tuple[str, Cell]]:
    lines = csv.reader(_text(path).splitlines())
    names: list[str] = []
    found: dict[int, list[float]] = {}
    diverged: dict[int, int] = {}
    try:
        names = [name.strip() for name in next(lines, [])]
        if not {"batch", "samples"} <= set(names) or len(set(names)) < len(names):
            raise UserError(
                f"--from {path}: its first line names {', '.join(names) or 'nothing'}; expected"
                " batch, seed, samples"
            )
        for words in filter(None, lines):
            where = f"--from {path}, line {lines.line_num}"
            if len(words) != len(names):
                raise UserError(f"{where}: {len(words)} values, the first line names {len(names)}")
            line = dict(zip(names, words, strict=True))
            batch, needed = _number(line["batch"]), _number(line["samples"])
            if batch is None or not _is_batch(batch):
                raise UserError(f"{where}: batch={short(line['batch'])}: {BATCHES}")
            own = found.setdefault(int(batch), [])
            if needed is not None and _is_needed(needed):
                own.append(needed)
            elif line["samples"].strip().lower() in ("", "diverged", "nan", "inf"):
                diverged[int(batch)] = diverged.get(int(batch), 0) + 1
            else:
                raise UserError(f"{where}: samples={short(line['samples'])}: {NEEDS}, or diverged")
    except csv.Error as error:
        raise UserError(f"--from {path}, line {lines.line_num}: no table ({error})") from None
    if not found:
        raise UserError(f"--from {path}: holds no runs")
    for batch in found:
        yield path.stem, Cell(batch, tuple(found[batch]), diverged.get(batch, 0))


def _off(before: Cell, cell: Cell, after: Cell) -> float:
    """Return how far a batch is from the line between its neighbours, in logarithms."""
    low, here, high = (math.log(each.batch) for each in (before, cell, after))
    share = (here - low) / (high - low)
    between = (1 - share) * math.log(before.mean) + share * math.log(after.mean)
    return abs(math.log(cell.mean) - between)


def _is_batch(value: float) -> bool:
    return 1 <= value <= MOST_BATCH and value == int(value)


def _is_needed(value: Any) -> bool:
    return is_number(value) and 1 / MOST_NEED <= value <= MOST_NEED


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
