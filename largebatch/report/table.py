"""The table of runs: settings and the figures that each run is judged by."""

from __future__ import annotations

from collections.abc import Sequence

from largebatch.report.figures import LOSS, Figure, by_name
from largebatch.report.runs import Run

WORDS = ("model", "data")  # columns that hold no numbers
BEFORE = ("model", "data", "batch", "ranks")  # columns before those of the figures
TILES = ("batch", "ranks", "samples/s", "wall time")  # shown large for a run that stands alone

Columns = dict[str, list[str]]


def table(runs: Sequence[Run]) -> Columns:
    """Return the columns, with one cell for each run."""
    facts = {name: [run.row[name] for run in runs] for name in runs[0].row}
    before = {name: facts.pop(name) for name in BEFORE}
    return {**before, **figure_columns(runs), **facts}


def figure_columns(runs: Sequence[Run]) -> Columns:
    """Return the columns of the figures: every run's headline, last and best, and the loss.

    The best value is shown if a run's record tells which direction is better.
    """
    best = any(run.judged.told for run in runs)
    columns: Columns = {}
    for figure in _headlines(runs):
        columns[figure.label] = [_last(run, figure) for run in runs]
        if best:
            columns[f"best {figure.label}"] = [_best(run, figure) for run in runs]
    return {**columns, LOSS.label: [_last(run, LOSS) for run in runs]}


def lacking(runs: Sequence[Run]) -> list[list[str]]:
    """Return for each run the other runs' headline figures of which it has no value."""
    return [
        [figure.label for figure in _headlines(runs) if not run.has(figure.name)] for run in runs
    ]


def _headlines(runs: Sequence[Run]) -> list[Figure]:
    return list(by_name(run.judged.headline for run in runs).values())


def _last(run: Run, figure: Figure) -> str:
    value = run.last.get(figure.name)
    return "–" if value is None else _as_its_own(run, figure).text(value)


def _best(run: Run, figure: Figure) -> str:
    values = run.series["val"].get(figure.name, {}).get("value")
    own = _as_its_own(run, figure)
    return own.text(own.best(values)) if values else "–"


def _as_its_own(run: Run, figure: Figure) -> Figure:
    """Return the figure as the run itself reads it, where it does."""
    return run.judged.figures.get(figure.name, figure)
