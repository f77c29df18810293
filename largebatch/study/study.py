"""The interface of a study: it asks for runs as results come in, and concludes from all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from largebatch._registry import Facts, Registry
from largebatch.record import BenchmarkRecord
from largebatch.report.record_page import write_page
from largebatch.study.job import Job
from largebatch.train import Outcome

Done: TypeAlias = Mapping[str, Outcome]
"""The finished jobs by name, each with the summary of its run."""


class Study(ABC):
    """A question asked of many runs.

    A study's factory is registered in `studies`, or named as ``package.module:callable``. The
    arguments in the factory's signature become options of ``largebatch study``.
    """

    @abstractmethod
    def jobs(self, done: Done) -> Iterable[Job]:
        """Return all jobs known so far, including those that are done.

        Called again whenever a job ends, so that later jobs can depend on results. The same results
        must give the same jobs.
        """

    @abstractmethod
    def conclude(self, done: Done) -> BenchmarkRecord:
        """Return the conclusion, once every job of :meth:`jobs` is done."""

    def says(self, done: Done) -> Iterable[str]:
        """Return messages for the user before the next jobs start, such as their cost.

        Each line is printed once; later lines may depend on results.
        """
        return ()

    def draw(self, record: BenchmarkRecord, path: Path) -> bool:
        """Write a page about the conclusion to ``path``; return whether there is one."""
        charts = list(self.charts(record))
        if charts:
            write_page(path, record, charts, f"study {record.name}")
        return bool(charts)

    def charts(self, record: BenchmarkRecord) -> Iterable[tuple[str, str, Any]]:
        """Return the charts of the conclusion: (title, note, plotly figure) each."""
        return ()


studies: Registry[Callable[..., Study], Facts] = Registry(
    "study", lambda _: Facts(), importable=True
)
