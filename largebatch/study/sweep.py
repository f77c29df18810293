"""`study sweep`: any keys over any values, or named sets of options, with every seed.

With a budget, every cell first tunes one key (usually the learning rate) with the same number of
runs. Nado et al. 2021 showed that a method that is tuned less loses, whatever its merits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import Any

from largebatch._errors import UserError
from largebatch.record import BenchmarkRecord
from largebatch.study.grid import GridStudy, known_figure, plain, value_of
from largebatch.study.job import Job
from largebatch.study.options import as_option
from largebatch.study.search import LEAST, next_exponents
from largebatch.study.study import Done, studies
from largebatch.train import parse

TUNING_SEED = 100
OWN = {  # keys that no cell can have for itself, and what does that instead
    "run.seed": "; --seeds=[0, 1, 2] names the seeds of every cell",
    "run.dir": ", which gives every run a folder in --folder",
    "checkpoint.resume": ", which continues every run",
}


@studies.register(
    "sweep", "any keys over any values, or named sets of options, with several seeds: table and map"
)
class Sweep(GridStudy):
    """Runs every combination of values, or every named set of options, with every seed.

    Args:
        over: keys of ``largebatch train`` and the values of each.
        cells: options of ``largebatch train`` by the name of their row, in place of ``over`` or
            combined with each of its values.
        seeds: seeds of each cell's runs.
        base: settings of all runs.
        figure: figure of the last validation; unset: the task's headline figure.
        percent: give the figure in %; unset: if this is usual for the figure.
        column: heading of the column of names, if there are ``cells``.
        tune: a key that every cell tunes for itself, over powers of two times its own value.
        budget: number of tuning runs per cell, at least 5.
        tuning: settings of the tuning runs alone, such as a held-out part of the training data.
        name: name of the record.
    """

    def __init__(
        self,
        over: dict[str, list[Any]] | None = None,
        cells: dict[str, list[str]] | None = None,
        seeds: Sequence[int] = (0, 1, 2),
        base: Sequence[str] = (),
        figure: str | None = None,
        percent: bool | None = None,
        column: str = "cell",
        tune: str | None = None,
        budget: int = 7,
        tuning: Sequence[str] = (),
        name: str = "sweep",
    ) -> None:
        if not over and not cells:
            raise UserError(
                "study sweep: --over={optim.lr: [0.1, 0.2]} names keys and values, --cells={NAME:"
                " [--optim.lr=0.1]} sets of options"
            )
        if tune is not None and budget < LEAST:
            raise UserError(f"--budget={budget}: at least {LEAST} runs to find the best {tune}")
        self.over = over or {}
        for key in self.over:
            if key in OWN:
                raise UserError(f"--over={{{key}: ...}}: {key} is the study's own{OWN[key]}")
        self.places: dict[str, dict[str, Any]] = {}
        found: dict[str, list[str]] = {}
        for (title, options), values in product(
            (cells or {"": []}).items(), product(*self.over.values())
        ):
            place = dict(zip(self.over, values, strict=True))
            words = [f"{_short(key)} {as_option(value)}" for key, value in place.items()]
            cell = ", ".join([title] * bool(title) + words)
            found[cell] = [*options, *(f"--{k}={as_option(v)}" for k, v in place.items())]
            self.places[cell] = ({column: title} if title else {}) | place
        super().__init__(found, seeds, base, figure, percent, column, name)
        self.tune, self.budget, self.tuning = tune, budget, tuning

    def jobs(self, done: Done) -> Iterable[Job]:
        """Return all runs; with ``tune``, the searches so far and the runs that follow."""
        return super().jobs(done) if self.tune is None else self._searched(done)

    def _searched(self, done: Done) -> Iterator[Job]:
        for cell in self.cells:
            values = self._tried(cell, done)
            further = next_exponents(values, self.budget)
            for exponent in (*values, *further):
                yield self._tuning_job(cell, exponent)
            if not further:
                yield from self._finals(cell, max(values, key=lambda each: values[each]))

    def _value(self, cell: str, exponent: int) -> float:
        """Return the value of the tuned key at an exponent of two."""
        assert self.tune is not None
        config = parse.flat(Job.of(plain(cell), [*self.base, *self.cells[cell]]).config)
        if not isinstance(config.get(self.tune), (int, float)):
            raise UserError(f"--tune={self.tune}: no key with a number to search by")
        return float(config[self.tune]) * 2.0**exponent

    def _tuning_job(self, cell: str, exponent: int) -> Job:
        value = self._value(cell, exponent)
        own = [f"--{self.tune}={value!r}", f"--run.seed={TUNING_SEED}"]
        options = [*self.base, *self.cells[cell], *self.tuning, *own]
        return Job.of(f"{plain(cell)}-tune-{value:g}", options, may_be_lost=True)

    def _finals(self, cell: str, exponent: int) -> Iterator[Job]:
        value = self._value(cell, exponent)
        for seed in self.seeds:
            own = [f"--{self.tune}={value!r}", f"--run.seed={seed}"]
            options = [*self.base, *self.cells[cell], *own]
            yield Job.of(self.job_name(cell, seed), options, may_be_lost=True)

    def _tried(self, cell: str, done: Done) -> dict[int, float]:
        """Return the values found by now, higher the better, as far as the search would come."""
        values: dict[int, float] = {}
        while asked := next_exponents(values, self.budget):
            names = {exponent: self._tuning_job(cell, exponent).name for exponent in asked}
            if not set(names.values()) <= set(done):
                break
            for exponent, name in names.items():
                values[exponent] = self._score(done, name)
        return values

    def _score(self, done: Done, name: str) -> float:
        outcome = done[name]
        if outcome.lost:
            return float("-inf")
        known = known_figure(outcome, self.figure)
        value = value_of(outcome.summary or {}, known.name)
        return value if known.better == "higher" else -value

    def conclude(self, done: Done) -> BenchmarkRecord:
        """Return one row per cell, with its tuned value."""
        record = super().conclude(done)
        for row, cell in zip(record.rows, self.cells, strict=True):
            if self.tune is not None:
                values = self._tried(cell, done)
                best = max(values, key=lambda each: values[each])
                row[self.tune] = self._value(cell, best)
                row["on the edge"] = best in (min(values), max(values))
        if self.over:
            record.details |= {
                "keys": list(self.over),
                "places": [self.places[cell] for cell in self.cells],
            }
        if self.tune is not None:
            record.notes.append(f"{self.tune} found by {self.budget} runs a row, seed 100")
        return record

    def charts(self, record: BenchmarkRecord) -> Iterator[tuple[str, str, Any]]:
        """Draw a map for two keys, a line for one, or else the seeds of every row."""
        from largebatch.report.record_page import blank_figure

        figure, keys = record.details["figure"], record.details.get("keys", [])
        unit = ", %" * record.details["percent"]
        titles = {place.get(self.column, "") for place in record.details.get("places", ())}
        if len(keys) == 2 and len(titles) == 1:
            yield f"{figure}{unit}", "mean over seeds", self._map(record, keys, figure)
        elif len(keys) == 1:
            from plotly.graph_objects import Scatter

            drawn = blank_figure(keys[0], figure)
            drawn.update_yaxes(rangemode="normal")
            if _is_wide(self.over[keys[0]]):
                drawn.update_xaxes(type="log", tickvals=self.over[keys[0]])
            for title in sorted(titles):
                of = [
                    (place[keys[0]], row)
                    for place, row in zip(record.details["places"], record.rows, strict=True)
                    if place.get(self.column, "") == title and row[figure] != "lost"
                ]
                error = {"type": "data", "array": [row["sd"] or 0.0 for _, row in of]}
                x = [
                    value if isinstance(value, (int, float)) else as_option(value)
                    for value, _ in of
                ]
                y = [row[figure] for _, row in of]
                drawn.add_trace(
                    Scatter(x=x, y=y, error_y=error, name=title or figure, mode="lines+markers")
                )
            yield f"{figure}{unit}", "mean and standard deviation over seeds", drawn
        else:
            yield from super().charts(record)

    def _map(self, record: BenchmarkRecord, keys: Sequence[str], figure: str) -> Any:
        from plotly.graph_objects import Heatmap

        from largebatch.report.record_page import blank_figure

        drawn = blank_figure(keys[0], keys[1])
        across, up = ([as_option(value) for value in self.over[key]] for key in keys)
        found = {
            (as_option(place[keys[0]]), as_option(place[keys[1]])): row[figure]
            for place, row in zip(record.details["places"], record.rows, strict=True)
        }
        values = [[found[x, y] if found[x, y] != "lost" else None for x in across] for y in up]
        drawn.add_trace(Heatmap(x=across, y=up, z=values, texttemplate="%{z}", xgap=2, ygap=2))
        drawn.update_xaxes(type="category")
        drawn.update_yaxes(type="category", rangemode="normal")
        return drawn


def _is_wide(values: Sequence[Any]) -> bool:
    """Return whether numbers span so much that a logarithmic axis shows them better."""
    if not all(isinstance(value, (int, float)) and value > 0 for value in values):
        return False
    return bool(max(values) >= 10 * min(values))


def _short(key: str) -> str:
    return key.rpartition(".")[2]
