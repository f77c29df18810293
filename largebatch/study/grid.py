"""A grid study: every cell (a set of `largebatch train` options) with every seed, a row each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from statistics import mean, stdev
from typing import Any

from largebatch._errors import UserError
from largebatch.record import BenchmarkRecord, RunDirectory
from largebatch.study.job import Job
from largebatch.study.study import Done, Study
from largebatch.tasks import Figure
from largebatch.train import Outcome


class GridStudy(Study):
    """Runs every cell with every seed.

    Args:
        cells: options of ``largebatch train`` by the name of their row.
        seeds: values of ``run.seed`` for each cell.
        base: options of all cells; a cell's own options override them.
        figure: figure of the last validation; None: the task's headline figure.
        percent: give the figure in %; None: if this is usual for the figure.
        column: heading of the column of names.
        name: name of the record.
    """

    formula = "mean and standard deviation over seeds of the last validation's {figure}{unit}"
    notes: tuple[str, ...] = ()

    def __init__(
        self,
        cells: dict[str, list[str]],
        seeds: Sequence[int] = (0, 1, 2),
        base: Sequence[str] = (),
        figure: str | None = None,
        percent: bool | None = None,
        column: str = "cell",
        name: str = "grid",
    ) -> None:
        if not cells or not seeds:
            raise UserError(f"study {name}: at least one cell and one seed")
        self.cells, self.seeds, self.base = cells, seeds, base
        self.figure, self.percent, self.column, self.name = figure, percent, column, name

    def jobs(self, done: Done) -> Iterable[Job]:
        """Return the runs of all cells; all are known from the start.

        Raises:
            UserError: a run that is done has no such figure.
        """
        if (outcome := _finished(done)) is not None:  # before the others are made
            value_of(outcome.summary or {}, known_figure(outcome, self.figure).name)
        return self._jobs

    @cached_property
    def _jobs(self) -> list[Job]:
        return [
            Job.of(
                self.job_name(cell, seed),
                [*self.base, *options, f"--run.seed={seed}"],
                may_be_lost=True,
            )
            for cell, options in self.cells.items()
            for seed in self.seeds
        ]

    def job_name(self, cell: str, seed: int) -> str:
        """Return the name of one run."""
        return f"{plain(cell)}-{seed}"

    def conclude(self, done: Done) -> BenchmarkRecord:
        """Return one row per cell: seeds, mean, standard deviation, all values."""
        known = self.known(done)
        percent = known.percent if self.percent is None else self.percent
        values = {
            cell: {
                seed: value_of(done[name].summary or {}, known.name, percent)
                for seed, name in ((seed, self.job_name(cell, seed)) for seed in self.seeds)
                if not done[name].lost
            }
            for cell in self.cells
        }
        rows = [
            {
                self.column: cell,
                **spread(list(each.values()), known.name, digits=2 if percent else 4),
                **self.further(cell, values, known),
            }
            for cell, each in values.items()
        ]
        formula = self.formula.format(figure=known.name, unit=", in %" * percent)
        lost = [f"{name}: lost: {done[name].lost}" for name in sorted(done) if done[name].lost]
        details = {"figure": known.name, "percent": percent}
        return BenchmarkRecord(
            self.name, formula, rows, notes=[*self.notes, *lost], details=details
        )

    def charts(self, record: BenchmarkRecord) -> Iterator[tuple[str, str, Any]]:
        """Draw every seed of every row, and their mean."""
        from plotly.graph_objects import Scatter

        from largebatch.report.record_page import blank_figure

        figure, unit = record.details["figure"], ", %" * record.details["percent"]
        rows = [row for row in record.rows if row["all"]]
        drawn = blank_figure(f"{figure}{unit}", "")
        drawn.update_layout(hovermode="closest", height=140 + 32 * len(rows))
        drawn.update_yaxes(autorange="reversed", type="category", rangemode="normal")
        seeds = [(value, row[self.column]) for row in rows for value in row["all"]]
        for name, points, marker in (
            ("a seed", seeds, {"size": 8, "opacity": 0.4}),
            ("mean", [(row[figure], row[self.column]) for row in rows], {"size": 12}),
        ):
            x, y = zip(*points, strict=True) if points else ((), ())
            drawn.add_trace(Scatter(x=x, y=y, name=name, mode="markers", marker=marker))
        yield f"{figure}{unit}", "every seed, and the mean over seeds", drawn

    def known(self, done: Done) -> Figure:
        """Return the compared figure as the runs' task defines it.

        Raises:
            UserError: no run has finished.
        """
        outcome = _finished(done)
        if outcome is None:
            raise UserError(f"study {self.name}: every run was lost; see FOLDER/jobs/*.log")
        return known_figure(outcome, self.figure)

    def further(
        self, cell: str, values: Mapping[str, Mapping[int, float]], known: Figure
    ) -> dict[str, Any]:
        """Return further columns of the row of ``cell``, from the values of all cells by seed."""
        return {}


def _finished(done: Done) -> Outcome | None:
    """Return a run that was not lost, None if there is none."""
    return next((each for each in done.values() if each.summary), None)


def known_figure(outcome: Outcome, name: str | None) -> Figure:
    """Return a figure as the task of a finished run defines it; name None: the headline figure."""
    facts = RunDirectory(outcome.directory).read_task() or {}
    name = name or (outcome.summary or {}).get("headline", "loss")
    known = {**facts.get("figures", {})}
    headline = facts.get("headline", {})
    if headline.get("name") == name:
        known[name] = headline
    return Figure(**known[name]) if name in known else Figure(name)


def plain(name: str) -> str:
    """Return a row's name in a form that is valid for a folder."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.") or "cell"


def value_of(summary: Mapping[str, Any], figure: str, percent: bool = False) -> float:
    """Return the value of a figure from a finished run's summary.

    Raises:
        UserError: the run has no figure of this name.
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
        figure: round(mean(values), digits) if values else "lost",
        "sd": round(stdev(values), digits) if len(values) > 1 else None,
        "all": [round(value, digits) for value in values],
    }
