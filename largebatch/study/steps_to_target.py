"""`study steps-to-target`: steps and samples to a target at each batch, and the critical batch.

Shallue et al. 2019, "Measuring the effects of data parallelism": at every batch the rate is tuned
anew, and the steps to a target are counted. The run that found the rate was the luckiest of
several, so that it does not count: other seeds do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from largebatch._errors import UserError
from largebatch._paths import UserPath
from largebatch.record import BenchmarkRecord, RunDirectory, is_number
from largebatch.study import quadratic
from largebatch.study.convergence import MOST_NEED, Cell, Convergence, read_convergence
from largebatch.study.hyperbola import (
    OVERHEAD,
    Interpolated,
    NoHyperbola,
    account_of_misfit,
    fit_line,
    interpolate,
    scatter_of_runs,
)
from largebatch.study.job import Job
from largebatch.study.settings import Rule, at_batch, base_config, rule_of, times, with_seed
from largebatch.study.study import Done, Study, studies
from largebatch.train.config import Config
from largebatch.train.keys import short
from largebatch.train.prepare import prepare

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

FORMULA = """\
needed(B) = Emin + Smin B to the target, by weighted least squares over the means of batches
critical batch = Emin / Smin, low and high its 95% interval (Fieller; variances by Birge's factor)
scatter = chi squared of the means about the line / degrees of freedom; misfit = its probability
  by an F test
B20 = the batch that needs 20% more: 0.2 x critical batch by the line; by interpolation, over the
  smallest batches' need; the interpolated one counts where the line does not fit (misfit < 0.01)"""

WORTH_TELLING = 0.05  # of need above the least, at the batch that interpolation starts from


@studies.register(
    "steps-to-target",
    "runs over batches, rates and seeds to a target: the critical batch and B20",
    "Shallue et al. 2019; McCandlish et al. 2018",
)
class StepsToTarget(Study):
    """Runs to a target at several batches, or published figures of such runs.

    Args:
        from_: files of figures, in place of runs: MLPerf's reference convergence points (.json) or
            tables of batch, seed, samples (.csv).
        without: batches to leave out.
        batches: batches of the runs; unset: doublings from a quarter of the config's batch to 16
            times the config's batch.
        rates: factors on the rate of the scaling rule. Several are compared at every batch by a run
            each, with a seed of its own.
        seeds: number of runs that count at each batch.
        target: name and value of a figure, such as {loss: 0.1}; unset: the config's ``run.target``.
        scaling: how the rate follows the batch; unset: as the config or the optimizer has it.
        base: settings of the runs.
    """

    def __init__(
        self,
        from_: Sequence[UserPath] = (),
        without: Sequence[int] = (),
        batches: Sequence[int] = (),
        rates: Sequence[float] = (0.5, 1.0, 2.0),
        seeds: int = 3,
        target: dict[str, float] | None = None,
        scaling: Rule | None = None,
        base: Sequence[str] = (),
    ) -> None:
        self.without = without
        self.published = list(read_convergence(from_)) if from_ else None
        if self.published is not None:
            if base or batches or target or scaling:
                raise UserError("--from: figures of runs that were made; leave out what makes runs")
            there = {cell.batch for task in self.published for cell in task.cells}
            self._require_there(there)
            return
        config = base_config(base, "steps-to-target")
        goal = target or config.run.target
        if not goal:
            raise UserError("study steps-to-target: --target={FIGURE: VALUE} is missing")
        if seeds < 1 or not rates or min(rates) <= 0:
            raise UserError("study steps-to-target: at least one seed, and rates above 0")
        own = config.batch.size
        self.batches = sorted(set(batches)) or [max(1, own // 4) * 2**n for n in range(7)]
        self._require_there(set(self.batches))
        self.rates = sorted(set(rates))
        self.config = replace(config, run=replace(config.run, target=dict(goal)))
        self.rule = rule_of(config, scaling)
        self.tuning = config.run.seed
        first = self.tuning + (len(self.rates) > 1)
        self.numbers = range(first, first + seeds)

    def _require_there(self, batches: set[int]) -> None:
        for batch in sorted(set(self.without) - batches):
            known = ", ".join(map(str, sorted(batches)))
            raise UserError(f"--without={batch}: no runs of that batch; there are {known}")

    def jobs(self, done: Done) -> Iterator[Job]:
        """Return every rate with the first seed, and each batch's best rate with the others."""
        if self.published is not None:
            return
        for batch in self.batches:
            for rate in self.rates:
                yield self._job(batch, rate, self.tuning)
        for batch in self.batches:
            best = self._best(batch, done)
            if best is not None:
                for seed in self.numbers:
                    if seed != self.tuning:
                        yield self._job(batch, best, seed)

    def says(self, done: Done) -> Iterable[str]:
        """Return in words how many runs there will be."""
        tuning = len(self.batches) * len(self.rates)
        rest = len(self.batches) * sum(seed != self.tuning for seed in self.numbers)
        goal = " and ".join(f"{k} {v:g}" for k, v in (self.config.run.target or {}).items())
        yield (
            f"{tuning} runs to {goal} with one seed each, at most {rest} further ones at the best"
            f" rates; rate by the rule {self.rule}, each run at most {self.config.schedule.length}"
        )

    def _job(self, batch: int, rate: float, seed: int) -> Job:
        config: Config = with_seed(at_batch(self.config, batch, self.rule, rate), seed)
        return Job(f"{batch}-{times(rate)}-seed-{seed}", config, may_be_lost=True)

    def _needed(self, batch: int, rate: float, seed: int, done: Done) -> float | None:
        """Return the samples to the target, None of a run that never came there."""
        outcome = done[self._job(batch, rate, seed).name]
        reached = (outcome.summary or {}).get("target")
        if reached is None:
            return None
        samples = reached.get("samples") if isinstance(reached, dict) else None
        if not is_number(samples) or not 1 <= samples <= MOST_NEED:
            raise UserError(
                f"{RunDirectory(outcome.directory).summary}: target={short(reached)}: damaged;"
                " delete it to run again"
            )
        return float(samples)

    def _best(self, batch: int, done: Done) -> float | None:
        """Return the rate that needed fewest samples with the first seed; None: none is known."""
        if any(self._job(batch, rate, self.tuning).name not in done for rate in self.rates):
            return None
        tried = {rate: self._needed(batch, rate, self.tuning, done) for rate in self.rates}
        came = {rate: value for rate, value in tried.items() if value is not None}
        return min(came, key=lambda rate: came[rate]) if came else None

    def conclude(self, done: Done) -> BenchmarkRecord:
        """Return one row per task, or one row for the study's own runs."""
        if self.published is not None:
            tasks = [task.without(self.without) for task in self.published]
        else:
            tasks = [self._measured(done).without(self.without)]
        rows, notes, details = [], [], []
        for task in tasks:
            row, said, detail = concluded(task)
            rows.append(row)
            notes += [f"{task.task}: {line}" for line in said]
            details.append(detail)
        return BenchmarkRecord(
            "steps-to-target", FORMULA, rows, notes=notes, details={"tasks": details}
        )

    def _measured(self, done: Done) -> Convergence:
        cells, said = [], []
        for batch in self.batches:
            best = self._best(batch, done)
            if best is None:
                said.append(f"batch {batch:,}: no rate came to the target with the first seed")
                continue
            needed = [self._needed(batch, best, seed, done) for seed in self.numbers]
            came = tuple(value for value in needed if value is not None)
            rate = self._job(batch, best, self.tuning).config.optim.lr
            cells.append(Cell(batch, came, len(needed) - len(came), rate))
            if len(self.rates) > 1 and best in (self.rates[0], self.rates[-1]):
                said.append(
                    f"batch {batch:,}: the best rate, {times(best)} of the rule, is the"
                    f" {'lowest' if best == self.rates[0] else 'highest'} tried: it may not be the"
                    " best there is"
                )
        said += self._exact(cells, done)
        lost = [name for name, outcome in sorted(done.items()) if outcome.lost]
        said += [f"{name}: {done[name].lost}" for name in lost]
        name = self.config.run.name or f"{self.config.model.name}, {self.config.data.name}"
        return Convergence(name, tuple(cells), remarks=tuple(said))

    def _exact(self, cells: Sequence[Cell], done: Done) -> Iterator[str]:
        """Say what the batches need in expectation at the rates found, where that is known."""
        goal = dict(self.config.run.target or {})
        if not quadratic.applies(self.config) or set(goal) != {"loss"}:
            return
        exact = []
        for cell in cells:
            rate = self._best(cell.batch, done)
            assert rate is not None
            config = self._job(cell.batch, rate, self.tuning).config
            schedule = prepare(config, torch.device("cpu")).schedule
            most = schedule.total_samples
            needed = quadratic.samples_to(goal["loss"], cell.batch, schedule.lr, most)
            if needed is not None:
                exact.append(Cell(cell.batch, (needed,)))
        if exact:
            words = ", ".join(f"{cell.batch:,}: {cell.mean:,.4g}" for cell in exact)
            limit = interpolate(exact).batch
            known = "above the largest batch" if limit is None else f"{limit:,.4g}"
            yield f"exactly, in expectation, batches need {words} at these rates; B20 = {known}"

    def charts(self, record: BenchmarkRecord) -> Iterator[tuple[str, str, Any]]:
        """Draw the samples needed against the batch, with the fitted line."""
        for task in record.details["tasks"]:
            note = f"{task['unit']} to the target; bars: 95% of the mean"
            yield f"{task['task']}: need against batch", note, _figure(task)


def concluded(task: Convergence) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
    """Return the row of a task, its notes, and the data of its chart."""
    task = task.without_outliers()
    cells, said = task.cells, list(task.remarks)
    row: dict[str, Any] = {
        "task": task.task,
        "batches": len(cells),
        "runs": sum(len(cell.needed) for cell in cells),
        "unit": task.unit,
    }
    detail: dict[str, Any] = {
        "task": task.task,
        "unit": task.unit,
        "samples": task.samples,
        "batches": [cell.batch for cell in cells],
        "learning_rates": [cell.learning_rate for cell in cells],
        "means": [cell.mean for cell in cells],
        "errors": [
            0.0 if cell.deviation is None else 1.96 * cell.deviation / len(cell.needed) ** 0.5
            for cell in cells
        ],
        "line": None,
        "B20": None,
    }
    try:
        line = fit_line(cells)
    except NoHyperbola as reason:
        said.append(f"refused: {reason}")
        between = interpolate(cells) if len(cells) > 1 else Interpolated(None, None, None)
        if between.batch is not None and between.low is not None and between.high is not None:
            said.append(
                f"though no line, by interpolation batch {figures(between.batch):,}"
                f" [{figures(between.low):,}, {figures(between.high):,}] needs"
                f" {OVERHEAD:.0%} more than the smallest"
            )
        said += task.standing_out()
        return {**row, "verdict": "refused"}, said, detail
    between = interpolate(cells)
    fits = line.fits
    if not fits:
        said.append(f"the line does not fit: {account_of_misfit(cells, line)}")
    said += task.standing_out()
    above = cells[0].batch / line.critical
    if not fits and above > WORTH_TELLING:
        said.append(
            f"by the line the smallest batch, {cells[0].batch:,}, already needs {above:.0%} more"
            " than the least, and the interpolated B20 counts from there"
        )
    headline, low, high = (
        (OVERHEAD * line.critical, OVERHEAD * line.low, OVERHEAD * line.high)
        if fits or between.batch is None
        else (between.batch, between.low, between.high)
    )
    if not fits and between.batch is None:
        said.append("no batch needs 20% more than the smallest: B20 is by the line all the same")
    scatter, freedom = scatter_of_runs(cells, line)
    detail |= {
        "line": [line.samples, line.steps],
        "covariance": line.covariance,
        "scatter": scatter,
        "freedom": freedom,
        "B20": headline,
    }
    row |= {
        "critical batch": figures(line.critical),
        "low": figures(line.low),
        "high": figures(line.high),
        "scatter": figures(line.scatter, 3),
        "misfit": None if line.misfit is None else float(f"{line.misfit:.2g}"),
        "least steps": figures(line.steps * task.samples),
        "least need": figures(line.samples),
        "B20 by line": figures(OVERHEAD * line.critical),
        "B20 interpolated": None if between.batch is None else figures(between.batch),
        "B20": figures(headline),
        "B20 low": None if low is None else figures(low),
        "B20 high": None if high is None else figures(high),
        "verdict": "line fits" if fits else "line does not fit",
    }
    return row, said, detail


def figures(value: float, digits: int = 4) -> float | int:
    """Return a value rounded to ``digits`` significant digits."""
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded == int(rounded) and abs(rounded) >= 10 else rounded


def _figure(task: dict[str, Any]) -> Figure:
    from plotly.graph_objects import Scatter

    from largebatch.report.record_page import blank_figure

    figure = blank_figure("batch", task["unit"])
    figure.update_xaxes(type="log")
    figure.update_yaxes(type="log", rangemode="normal")
    bars = {"type": "data", "array": task["errors"], "thickness": 1}
    points = {"x": task["batches"], "y": task["means"], "error_y": bars}
    figure.add_trace(Scatter(**points, name="measured", mode="markers"))
    if task["line"] is not None:
        intercept, slope = task["line"]
        low, high = min(task["batches"]), max(task["batches"])
        x = [low * (high / low) ** (n / 60) for n in range(61)]
        y = [intercept + slope * each for each in x]
        figure.add_trace(Scatter(x=x, y=y, name="Emin + Smin B", mode="lines"))
        figure.add_trace(
            Scatter(
                x=[task["B20"]] * 2,
                y=[min(y), max(y)],
                name=f"B20 = {figures(task['B20']):,}",
                mode="lines",
                line={"dash": "dot"},
            )
        )
    return figure
