"""Which of two learning rates ends lower."""

from __future__ import annotations

from collections.abc import Iterable

from largebatch.record import BenchmarkRecord
from largebatch.study.job import Job
from largebatch.study.study import Done, Study, studies
from largebatch.train.parse import parse


@studies.register("two_rates", "the loss of two learning rates")
class TwoRates(Study):
    """Two runs that differ in their rate."""

    def __init__(self, low: float = 0.01, high: float = 0.1, epochs: int = 2) -> None:
        self.rates, self.epochs = {"low": low, "high": high}, epochs

    def jobs(self, done: Done) -> Iterable[Job]:
        """Return both runs."""
        for name, lr in self.rates.items():
            options = [f"--optim.lr={lr}", f"--schedule.length={self.epochs}ep", "--batch.size=128"]
            yield Job(name, parse(options))

    def conclude(self, done: Done) -> BenchmarkRecord:
        """Return a row a rate."""
        losses = {name: (done[name].summary or {})["loss"] for name in self.rates}
        rows = [{"lr": lr, "loss": losses[name]} for name, lr in self.rates.items()]
        return BenchmarkRecord("two_rates", "the last validation's loss", rows)
