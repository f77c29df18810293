"""Check that moving averages remember more than one step of the run."""

from __future__ import annotations

from collections.abc import Iterator

from largebatch._errors import UserError
from largebatch.optim import short_averages
from largebatch.optim.averages import LEAST
from largebatch.schedule import Schedule, half_life_factor
from largebatch.train.config import Config


def require_memory(config: Config, schedule: Schedule) -> None:
    """Refuse averages of which the run's largest step would keep less than a tenth.

    Raises:
        UserError: the message names the key and the smallest possible half-life.
    """
    for named, factor in _short(config, schedule):
        raise UserError(
            f"{named}: a step of {schedule.largest:,} samples would leave {factor:.2g} of the"
            f" average, less than {LEAST:g}; take smaller batches, or a half-life of at least"
            f" {schedule.largest * 301 // 1000 + 1:,}sa"
        )


def _short(config: Config, schedule: Schedule) -> Iterator[tuple[str, float]]:
    clock, largest = schedule.clock, schedule.largest
    yield from short_averages(config.optim, clock, schedule.reference, largest)
    averages = (("ema.half_life", config.ema.half_life), ("norm.half_life", config.norm.half_life))
    for key, half_life in averages:
        if half_life is not None:
            factor = half_life_factor(largest, max(half_life.samples(clock), 1e-9))
            if factor < LEAST:
                yield f"{key}={half_life}", factor
