"""`study decision`: which batch on how many GPUs, from samples to a target and step times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from largebatch._errors import UserError
from largebatch._paths import UserPath
from largebatch.record import BenchmarkRecord
from largebatch.report.record_page import Tile, write_page
from largebatch.schedule import Duration
from largebatch.study.account import duration
from largebatch.study.choices import (
    Choice,
    Interval,
    choices,
    fastest_batch,
    fastest_hours,
    front,
    marked,
)
from largebatch.study.convergence import MOST_BATCH
from largebatch.study.decision_charts import draw_decision
from largebatch.study.job import Job
from largebatch.study.need import read_need
from largebatch.study.steps_to_target import figures
from largebatch.study.study import Done, Study, studies
from largebatch.study.timing import StepTime, fit_timing, read_timing

FORMULA = """\
hours = steps x seconds of a step / 3600; steps = Smin + Emin / batch, from the study of runs
seconds of a step = batch / (GPUs x rate) + fixed, a line through the timed steps
learning rate: of the runs, between their batches by a line through the logarithms
cost = hours x GPUs x price of a GPU an hour; kWh = hours x GPUs x watts / 1000
fewest hours on P GPUs: batch = sqrt(critical batch x fixed x P x rate), hours = (sqrt(Emin / (P
  rate)) + sqrt(Smin x fixed))^2 / 3600
statistics, timing: 90% intervals by the errors of the runs' line and of the step's time; run: by
  both and by how runs scatter, for a run that is still to be made"""
WITHIN = Duration(10, "%")
ANY = 1 << 62  # of batches whose time is given and not measured


@studies.register(
    "decision",
    "hours, cost and energy to the target against batch and GPUs, and three points to choose from",
)
class Decision(Study):
    """Combines the record of a study with step times into hours, cost and energy.

    Args:
        from_: record of steps-to-target or of critical-batch.
        scaling: record of ``bench scaling`` or of ``plan``; or give ``rate`` and ``fixed`` instead.
        rate: samples a second of a GPU.
        fixed: seconds of a step that do not depend on the batch.
        gpus: numbers of GPUs to choose from; unset: those that were timed.
        batches: batches to choose from; unset: four per doubling.
        price: price of a GPU for an hour; unset: cost is in GPU-hours.
        watts: that a GPU draws.
        within: how much more than the cheapest choice the third choice may cost.
        task: row of the steps-to-target record; unset: the only one.
    """

    def __init__(
        self,
        from_: UserPath,
        scaling: UserPath | None = None,
        rate: float | None = None,
        fixed: float = 0.0,
        gpus: Sequence[int] = (),
        batches: Sequence[int] = (),
        price: float | None = None,
        watts: float | None = None,
        within: Duration = WITHIN,
        task: str | None = None,
    ) -> None:
        if (scaling is None) == (rate is None):
            raise UserError("study decision: one of --scaling FILE and --rate SAMPLES_A_SECOND")
        for name, value in (("rate", rate), ("price", price), ("watts", watts)):
            if value is not None and not 1e-12 <= value <= 1e12:
                raise UserError(f"--{name}={value}: a number above 0, at most 10^12")
        if not 0 <= fixed <= 1e6:
            raise UserError(f"--fixed={fixed}: seconds, from 0 to 10^6")
        if any(not 1 <= each <= MOST_BATCH for each in (*gpus, *batches)):
            raise UserError("study decision: --gpus and --batches from 1 to 10^12")
        if within.unit != "%":
            raise UserError(f"--within={within}: a share, such as 10%")
        self.need, self.source = read_need(Path(from_), task)
        self.price, self.watts = price, watts
        self.within = float(within.value) / 100
        self.batches = batches
        if scaling is not None:
            self.times = fit_timing(read_timing(Path(scaling)), gpus)
            if gpus:
                self.times = [each for each in self.times if each.ranks in gpus]
        else:
            assert rate is not None
            self.times = [
                StepTime(count, rate, fixed, 1, ANY, 0.0) for count in sorted(set(gpus or [1]))
            ]

    def jobs(self, done: Done) -> Iterator[Job]:
        """Return no jobs: everything was measured before."""
        return iter(())

    def conclude(self, done: Done) -> BenchmarkRecord:
        """Return the three marked choices, then the front; all choices are in the details."""
        found = choices(self.need, self.times, self.batches, self.price, self.watts)
        points = marked(found, self.within)
        shown = [*points.items(), *(("front", choice) for choice in front(found))]
        rows = [self._row(name, choice) for name, choice in shown]
        notes = list(self._notes())
        details = {
            "price": self.price,
            "watts": self.watts,
            "points": {name: asdict(choice) for name, choice in points.items()},
            "front": [asdict(choice) for choice in front(found)],
            "choices": [asdict(choice) for choice in found],
        }
        return BenchmarkRecord("decision", FORMULA, rows, notes=notes, details=details)

    def _row(self, name: str, choice: Choice) -> dict[str, Any]:
        rate = choice.learning_rate
        return {
            "point": name,
            "GPUs": choice.ranks,
            "batch": choice.batch,
            **({} if rate is None else {"learning rate": figures(rate)}),
            "hours": figures(choice.hours),
            "statistics": _interval(choice.statistics),
            "timing": _interval(choice.timing),
            "run": _interval(choice.both),
            "GPU-hours" if self.price is None else "cost": figures(choice.cost),
            **({} if choice.kilowatt_hours is None else {"kWh": figures(choice.kilowatt_hours)}),
            "beyond what was measured": "yes" if choice.extrapolated else "no",
        }

    def _notes(self) -> Iterator[str]:
        need = self.need
        yield from need.remarks
        critical = f"{figures(need.critical):,}"
        yield (
            f"{self.source}: at least {figures(need.samples):,} samples and"
            f" {figures(need.steps):,} steps, critical batch {critical}, runs at batches"
            f" {need.least:,.6g} to {need.most:,.6g}"
        )
        for time in self.times:
            batch, hours = fastest_batch(need, time), fastest_hours(need, time)
            best = (
                f"fewest hours at batch sqrt({critical} x {time.fixed:.4g} x {time.ranks} x"
                f" {time.rate:,.6g}) = {figures(batch):,}: {duration(3600 * hours)}"
                if time.fixed > 0
                else "nothing is fixed, so that no batch is too small"
            )
            timed = "not timed"
            if time.most:
                timed = f"timed at {time.least:,} to {time.most:,}"
            if time.most == ANY:
                timed = "as given"
            yield (
                f"{time.ranks} GPU{'s' * (time.ranks > 1)}: {time.rate:,.6g} samples/s each,"
                f" {1e3 * time.fixed:,.4g} ms a step besides ({timed}); {best}"
            )

    def draw(self, record: BenchmarkRecord, path: Path) -> bool:
        """Write the page: the three marked choices in words, then the charts."""
        details = record.details
        tiles = [
            Tile(name, *_words(Choice(**each), self.price))
            for name, each in details["points"].items()
        ]
        lead = (
            "Each card is a way to train to the same target: how many samples a step takes at once"
            " (the batch) and on how many GPUs. Larger batches take fewer steps, but beyond the"
            f" critical batch of about {figures(self.need.critical, 3):,} samples they waste most"
            " of what they add. Dashed parts of curves were not measured."
        )
        write_page(
            path, record, list(draw_decision(details)), "Which batch, how many GPUs", tiles, lead
        )
        return True


def _interval(interval: Interval | None) -> str:
    if interval is None:
        return "not known"
    return f"{figures(interval[0], 3)} to {figures(interval[1], 3)}"


def _words(choice: Choice, price: float | None) -> tuple[str, list[str]]:
    """Return the value of a card and its lines."""
    gpus = f"{choice.ranks} GPU{'s' * (choice.ranks > 1)}"
    hours = f"{duration(3600 * choice.hours)} to the target"
    if choice.both is not None:
        low, high = choice.both
        hours += f", a run {duration(3600 * low)} to {duration(3600 * high)} (90%)"
    cost = f"{choice.cost:,.4g}" + (" GPU-hours" if price is None else " at the price given")
    lines = [
        hours if choice.both is not None else f"{hours}; how surely is not known",
        f"costs {cost}",
    ]
    if choice.learning_rate is not None:
        lines.insert(0, f"at a learning rate of {figures(choice.learning_rate)}")
    if choice.kilowatt_hours is not None:
        lines.append(f"{choice.kilowatt_hours:,.4g} kWh")
    if choice.extrapolated:
        lines.append("beyond what was measured: try it first")
    return f"batch {choice.batch:,} on {gpus}", lines
