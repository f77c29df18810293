"""What a study is: runs to ask for as results come in, and what they say together."""

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

    Its factory is registered in `studies`, or is named as ``package.module:callable``; what the
    factory's signature names are options of ``largebatch study``.
    """

    @abstractmethod
    def jobs(self, done: Done) -> Iterable[Job]:
        """Return all jobs that are known by now, those that are done among them.

        It is asked again whenever one ends, so that later jobs can follow from results; with the
        same results it gives the same jobs.
        """

    @abstractmethod
    def conclude(self, done: Done) -> BenchmarkRecord:
        """Return what the runs say, once every job of :meth:`jobs` is done."""

    def says(self, done: Done) -> Iterable[str]:
        """Return what a person should know before the jobs asked for begin, such as their cost.

        Each line is said once; later ones may follow from results.
        """
        return ()

    def draw(self, record: BenchmarkRecord, path: Path) -> bool:
        """Write a page of what was concluded to ``path``; return whether there is one."""
        charts = list(self.charts(record))
        if charts:
            write_page(path, record, charts, f"study {record.name}")
        return bool(charts)

    def charts(self, record: BenchmarkRecord) -> Iterable[tuple[str, str, Any]]:
        """Return (title, note, plotly figure) of what was concluded."""
        return ()


studies: Registry[Callable[..., Study], Facts] = Registry(
    "study", lambda _: Facts(), importable=True
)
