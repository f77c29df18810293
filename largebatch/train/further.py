"""Make the evaluations listed in ``evaluate.also``, for a live run or a saved one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from largebatch._errors import UserError
from largebatch.data import Batch, Delivery, Source
from largebatch.probes import Listed, Run, check_also, evaluations, make
from largebatch.tasks import Task
from largebatch.train.config import Config
from largebatch.train.evaluate import Evaluator, requests


@dataclass(frozen=True)
class Judged:
    """The parts of a live or saved run that evaluations need."""

    source: Source
    validation: Source
    task: Task[Any]
    evaluator: Evaluator


def further(config: Config, of: Judged) -> list[tuple[Listed, Run]]:
    """Return the evaluations, each with a function of a model in evaluation mode.

    Raises:
        UserError: an evaluation is not possible for this run.
    """
    as_it_is = replace(config.data, augment="none")
    evaluator = of.evaluator
    form = evaluator.precision.dtype, config.model.channels_last
    delivery = Delivery(config.run.seed, evaluator.device, False, *form)

    def plain(source: Source) -> Iterator[Batch]:
        with source.reader(as_it_is, delivery) as reader:
            yield from reader.read(requests(len(source), evaluator.batch, evaluator.world))

    offers = {
        "task": of.task,
        "source": of.source,
        "validation": of.validation,
        "evaluator": evaluator,
        "plain": plain,
        "world": evaluator.world,
        "device": evaluator.device,
        "seed": config.run.seed,
    }
    found = []
    for listed in check_also(config.evaluate.also):
        run = make(evaluations, listed, offers)
        if not callable(run):
            raise UserError(
                f"{listed.where}.name={listed.name!r}: returned a {type(run).__name__}, nothing to"
                " call with a model"
            )
        found.append((listed, run))
    return found
