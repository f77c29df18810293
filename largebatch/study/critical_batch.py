"""`study critical-batch`: measure the critical batch at several points of a run, by branches.

Merrill et al. 2025 start branches with larger batches from a checkpoint of a run, and compare
losses with a tolerance that they call arbitrary. Here branches read the same samples in the same
order, and the tolerance is Zhang et al.'s 20% more samples. Branches are judged on averaged or
annealed weights. A larger batch lowers the loss of the plain weights at once by averaging noise
out, whatever progress the branch makes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from largebatch._errors import UserError
from largebatch._paths import UserPath
from largebatch.processes.age import process_seconds
from largebatch.record import BenchmarkRecord, RunDirectory
from largebatch.schedule import Duration
from largebatch.study.account import Account, duration
from largebatch.study.branches import Branch, Branching, Judge, Point
from largebatch.study.cost import Cost, Speed, took
from largebatch.study.critical_charts import draw_critical
from largebatch.study.findings import Findings
from largebatch.study.job import Job
from largebatch.study.overhead import WINDOWS
from largebatch.study.settings import Rule, base_config, rule_of, times
from largebatch.study.study import Done, Study, studies
from largebatch.train import checkpoint, parse
from largebatch.train.named import name_of
from largebatch.train.outcome import outcome_of

FORMULA = """\
overhead = samples until a branch has the loss that the run's own batch has after a window / window
  - 1; mean over seeds. bound: one-sided 95%, Student's, of two variances: that over seeds, of all
  batches together, and that of the held-out samples, by leaving out each of 16 parts in turn
B20 = batch with an overhead of 20%, in proportion between neighbours; [95%] of overheads drawn
  anew by their errors. plain: the same of the weights as they are, which flatters large batches
noise scale = T / |G|^2 of the run's own batch there, as the run's probe `noise` measured it, else
  from a branch's few steps; if curvature is the same in all directions, B20 is 0.2 times it"""
MOST_FACTOR = 4096  # at which a doubling search ends
RATES = {1: (1.0,), 3: (0.71, 1.0, 1.41)}
LIKELY = (2, 4, 8, 16)  # the doublings that a cost is said of
FAILURES = 2  # in a row, after which a doubling search ends
WINDOW = Duration(0.5, "%")  # two seeds and four doublings are 6% of a run then
AT = ("25%", "50%", "75%")


@studies.register(
    "critical-batch",
    "branches off a run's checkpoints at multiples of its batch: B20 along the run",
    "Merrill et al. 2025; Zhang et al. 2024",
)
class CriticalBatch(Study):
    """Branches off kept checkpoints of a run, or of a run that the study makes first.

    Args:
        run: directory of the run, with checkpoints kept by ``checkpoint.at``; None: a run is made
            from ``base``.
        at: where to branch off; unset: at all checkpoints that the run has kept, or at 25%, 50% and
            75%.
        batches: factors on the run's batch, such as x2 x4; unset: doublings until two batches fail.
        window: length of the stretch after each checkpoint over which branches are compared.
        seeds: number of seeds, each with its own data order.
        rates: learning rates per batch: 1: the rate of the scaling rule; 3: this rate times 0.71, 1
            and 1.41.
        scaling: how the rate follows the batch; unset: as the config or the optimizer has it.
        average: judge weights averaged with a half-life of an eighth of a window; the default.
        anneal: judge plain weights after the rate has fallen to 0, at twice the cost.
        raw: judge plain weights as they are.
        base: settings of the run that is made if ``run`` is not given.
    """

    def __init__(
        self,
        run: UserPath | None = None,
        at: Sequence[Duration] = (),
        batches: Sequence[str] = (),
        window: Duration = WINDOW,
        seeds: int = 2,
        rates: int = 1,
        scaling: Rule | None = None,
        average: bool = False,
        anneal: bool = False,
        raw: bool = False,
        base: Sequence[str] = (),
    ) -> None:
        if (run is None) == (not base):
            raise UserError(
                "study critical-batch: name one of a run's directory, or the training by"
                " --recipe=NAME, --config=FILE or options of largebatch train"
            )
        if average + anneal + raw > 1:
            raise UserError("study critical-batch: one of --average, --anneal and --raw")
        if seeds < 1 or rates not in RATES:
            raise UserError("study critical-batch: --seeds from 1, --rates 1 or 3")
        self.judge: Judge = "anneal" if anneal else "raw" if raw else "average"
        self.run = None if run is None else RunDirectory(run)
        if self.run is None:
            config = base_config(base, "critical-batch")
            self.at = list(at) or [Duration.parse(each) for each in AT]
            config = replace(config, checkpoint=replace(config.checkpoint, at=self.at))
        else:
            config = self._of_run(self.run)
            self.at = list(at)
        self.rule = rule_of(config, scaling)
        self.branching = Branching(config, window, self.rule, self.judge)
        for each in self.at:
            self.branching.require_at(each)
        self.config = config
        self.factors = sorted({_factor(text) for text in batches})
        self.branching.require_batch(self.factors[-1] if self.factors else 2)
        most = self.branching.most // config.batch.size
        self.likely = self.factors or [factor for factor in LIKELY if factor <= most]
        self.most_factor = min(most, MOST_FACTOR)
        self.seeds = range(config.run.seed, config.run.seed + seeds)
        self.rates = RATES[rates]
        self.findings = Findings(self.branching, self.seeds, self.rates)
        self._start = process_seconds()

    def _of_run(self, run: RunDirectory) -> Any:
        if not run.config.exists():
            raise UserError(f"{run.path}: no run directory; it has no {run.config.name}")
        config = parse.read_config(run.config)
        if config.batch.plan:
            raise UserError(
                f"{run.path}: batch.plan has batches of its own: branch off a run of one batch"
            )
        return config

    # What is asked for.

    def jobs(self, done: Done) -> Iterator[Job]:
        """Return the run if it has to be made, and the branches known from the results so far."""
        if self.run is None:
            yield Job("run", self.config, nproc=self.config.run.nproc)
            if "run" not in done:
                return
        for point in self.points(done):
            for factor in (1, *self._factors(point, done)):
                for branch in self._branches(point, factor, done):
                    yield self.branching.job(branch)

    def points(self, done: Done) -> list[Point]:
        """Return the checkpoints to branch off from, in order.

        Raises:
            UserError: the run has kept no checkpoint there.
        """
        folder = (self.run or RunDirectory(done["run"].directory)).checkpoints
        kept = checkpoint.named(folder)
        names = [name_of(each) for each in self.at] or list(kept)
        for name in names or [""]:
            if name not in kept:
                there = ", ".join(kept) or "none"
                asked = f"--at={name.partition('-')[2]}" if name else "--at"
                raise UserError(
                    f"{asked}: {folder} keeps no such checkpoint, but {there};"
                    " checkpoint.at=[25%, 50%] has a run keep them"
                )
        found = [self.branching.point(name, folder / name) for name in names]
        return sorted(found, key=lambda point: point.samples)

    def _branches(self, point: Point, factor: int, done: Done) -> Iterator[Branch]:
        if factor == 1 and self.judge != "anneal":
            yield from (self.branching.reference(point, seed) for seed in self.seeds)
            return
        for rate in self.rates if factor > 1 else (1.0,):
            for seed in self.findings.seeds_of(point, factor, rate, done):
                yield Branch(point, factor, rate, seed)
                if self.judge == "anneal":  # it has one loss, so that two lengths make a curve
                    yield Branch(point, factor, rate, seed, 1 / WINDOWS)

    def _factors(self, point: Point, done: Done) -> list[int]:
        """Return the factors to try: those given, or doublings until two in a row have failed.

        Of doublings that are not done yet, as many are asked for as will be needed in any case.
        """
        if self.factors:
            return self.factors
        found, failed, factor = [], 0, 2
        while failed < FAILURES and factor <= self.most_factor:
            found.append(factor)
            tried = self.findings.overheads(point, found, done)
            passed = tried is not None and any(
                each.passes for each in tried if each.batch == factor * self.config.batch.size
            )
            failed = 0 if passed else failed + 1
            factor *= 2
        return found

    def says(self, done: Done) -> Iterator[str]:
        """Return the cost of a branch, of a checkpoint and of everything, in shares of the run."""
        window, size = self.branching.window, self.config.batch.size
        total = self.branching.total
        tried = len(self.rates) * len(self.likely)
        # In branches of 1.2 windows; the reference is as long as it is compared.
        if self.judge == "anneal":
            many = len(self.seeds) * (1 + 1 / WINDOWS) * (1 + tried)
        else:
            many = len(self.seeds) * (1 / WINDOWS + tried)
        share = WINDOWS * window / total
        what = f"{tried} batches" if self.factors else f"doublings to {times(self.likely[-1])}"
        yield (
            f"window {window:,} samples ({window // size} steps of {size}); a branch is"
            f" {share:.2%} of the run, a checkpoint {many * share:.1%} ({many:.3g} branches:"
            f" {what}); rate by the rule {self.rule}"
        )
        if self.run is None and "run" not in done:
            return
        points = self.points(done)
        cost = Cost.of(
            (self.branching.job(branch), point.samples)
            for point in points
            for factor in (1, *self.likely)
            for branch in self._branches(point, factor, {})
        )
        shares = f"{len(points)} checkpoints: {cost.samples / total:.1%} of the run"
        speed = self._speed(done)
        if speed is None:
            yield f"{shares}; it is not finished, so its speed is not known"
            return
        training, judging, starting = cost.seconds(speed)
        yield (
            f"{shares}, {cost.samples:,} samples; at its speed {duration(training)} of training,"
            f" {duration(judging)} of {cost.passes:,} passes over the held-out set and"
            f" {duration(starting)} of {cost.jobs} starts: {duration(sum(cost.seconds(speed)))}"
        )

    def _speed(self, done: Done) -> Speed | None:
        outcome = done["run"] if self.run is None else outcome_of(self.run.path)
        return None if outcome.summary is None else Speed.of(outcome, self._start)

    def conclude(self, done: Done) -> BenchmarkRecord:
        """Return one row per checkpoint and batch; the result of a checkpoint is in the notes."""
        rows: list[dict[str, Any]] = []
        details: list[dict[str, Any]] = []
        notes: list[str] = []
        for point in self.points(done):
            account = Account(self.findings, point, self._factors(point, done), done)
            details.append(account.detail)
            rows += account.rows()
            notes += account.notes()
        lost = [name for name, outcome in sorted(done.items()) if outcome.lost]
        notes += [f"{name}: lost: {done[name].lost}" for name in lost]
        notes.append(self._cost(done))
        head = {"judge": self.judge, "window": self.branching.window, "total": self.branching.total}
        return BenchmarkRecord(
            "critical-batch", FORMULA, rows, notes=notes, details={**head, "points": details}
        )

    def _cost(self, done: Done) -> str:
        made, samples, seconds = [], 0, 0.0
        for point in self.points(done):
            for factor in (1, *self._factors(point, done)):
                for branch in self._branches(point, factor, done):
                    outcome = done[branch.name()]
                    if outcome.summary is not None:
                        made.append((self.branching.job(branch), point.samples))
                        samples += outcome.samples - point.samples
                        seconds += took(outcome, self._start)
        share, speed = samples / self.branching.total, self._speed(done)
        said = (
            ""
            if speed is None
            else f" ({duration(sum(Cost.of(made).seconds(speed)))} by its speed)"
        )
        return (
            f"{len(made)} branches took {share:.1%} of the run,"
            f" {share / len(self.points(done)):.1%} a checkpoint, in {duration(seconds)}{said}"
        )

    def charts(self, record: BenchmarkRecord) -> Iterable[tuple[str, str, Any]]:
        """Draw overheads, loss curves, and B20 (the batch of 20% overhead) along the run."""
        return draw_critical(record.details)


def _factor(text: str) -> int:
    number = text.removeprefix("x")
    if not number.isdigit() or int(number) < 2:
        raise UserError(f"--batches: {text!r}: factors on the run's batch, such as x2 x4 x8")
    return int(number)
