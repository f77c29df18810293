"""What a study is: runs to ask for as results come in, and what they say together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from largebatch._registry import Facts, Registry
from largebatch.record import BenchmarkRecord
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


studies: Registry[Callable[..., Study], Facts] = Registry(
    "study", lambda _: Facts(), importable=True
)
