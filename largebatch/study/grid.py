"""A grid: every cell, a set of options of `largebatch train`, with every seed; a row a cell."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from statistics import mean, stdev
from typing import Any

from largebatch._errors import UserError
from largebatch.record import BenchmarkRecord
from largebatch.study.job import Job
from largebatch.study.study import Done, Study, studies
from largebatch.train import parse


@studies.register("grid", "sets of options, each with several seeds: a table of a final figure")
class GridStudy(Study):
    """Every cell with every seed.

    Args:
        cells: options of ``largebatch train`` by the name of their row.
        seeds: ``run.seed`` of the runs of a cell.
        base: options of all cells, which a cell's own override.
        figure: of the last validation; None: the one that the task is known by.
        percent: give it in %.
        column: head of the names' column.
        name: of the record.
    """

    formula = "mean and standard deviation over seeds of the last validation's {figure}"
    notes: tuple[str, ...] = ()

    def __init__(
        self,
        cells: dict[str, list[str]],
        seeds: Sequence[int] = (0, 1, 2),
        base: Sequence[str] = (),
        figure: str | None = None,
        percent: bool = False,
        column: str = "cell",
        name: str = "grid",
    ) -> None:
        if not cells or not seeds:
            raise UserError("study grid: at least one cell and one seed")
        self.cells, self.seeds, self.base = cells, seeds, base
        self.figure, self.percent, self.column, self.name = figure, percent, column, name

    def jobs(self, done: Done) -> Iterable[Job]:
        """Return the runs of all cells, which are known from the first."""
        return self._jobs

    @cached_property
    def _jobs(self) -> list[Job]:
        return [
            Job(
                self.job_name(cell, seed),
                parse.parse([*self.base, *options, f"--run.seed={seed}"]),
            )
            for cell, options in self.cells.items()
            for seed in self.seeds
        ]

    def job_name(self, cell: str, seed: int) -> str:
        """Return the name of one run."""
        return f"{plain(cell)}-{seed}"

    def conclude(self, done: Done) -> BenchmarkRecord:
        """Return a row a cell: seeds, mean, standard deviation, all values."""
        summaries = {
            cell: [done[self.job_name(cell, seed)].summary or {} for seed in self.seeds]
            for cell in self.cells
        }
        figure = self.figure or next(iter(summaries.values()))[0].get("headline", "loss")
        values = {
            cell: [value_of(summary, figure, self.percent) for summary in each]
            for cell, each in summaries.items()
        }
        rows = [
            {
                self.column: cell,
                **spread(each, figure, digits=2 if self.percent else 4),
                **self.further(cell, values),
            }
            for cell, each in values.items()
        ]
        formula = self.formula.format(figure=figure)
        return BenchmarkRecord(self.name, formula, rows, notes=list(self.notes))

    def further(self, cell: str, values: Mapping[str, Sequence[float]]) -> dict[str, Any]:
        """Return what else the row of ``cell`` says, of the values of all cells."""
        return {}


def plain(name: str) -> str:
    """Return a row's name as a folder can have it."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.") or "cell"


def value_of(summary: Mapping[str, Any], figure: str, percent: bool = False) -> float:
    """Return a figure of a finished run.

    Raises:
        UserError: the run has none of that name.
    """
    value = summary.get(figure)
    if not isinstance(value, (int, float)):
        there = ", ".join(k for k, v in summary.items() if isinstance(v, (int, float)))
        raise UserError(f"figure={figure}: {summary.get('name')} has none; there are {there}")
    return 100 * float(value) if percent else float(value)


def spread(values: Sequence[float], figure: str, digits: int = 2) -> dict[str, Any]:
    """Return mean, standard deviation and every value of one cell's seeds."""
    return {
        "seeds": len(values),
        figure: round(mean(values), digits),
        "sd": round(stdev(values), digits) if len(values) > 1 else None,
        "all": [round(value, digits) for value in values],
    }
