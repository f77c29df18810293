"""The registry of instruments, from which ``probes`` in a config chooses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from largebatch._errors import UserError
from largebatch._registry import Facts, Registry
from largebatch.probes.instrument import Instrument
from largebatch.probes.listed import Listed, check_list, make
from largebatch.schedule import Clock, Every

probes: Registry[Callable[..., Instrument], Facts] = Registry(
    "probes", lambda _: Facts(), importable=True
)

OFFERS: dict[str, str] = {
    "model": "the user's model",
    "optimizer": "over its parameters",
    "engine": "that owns the exchange of gradients",
    "task": "what a step means",
    "world": "the ranks",
    "device": "of this rank",
    "clock": "converts durations to samples",
    "schedule": "batch plan and learning rate",
    "every": "which steps are due, as the item says",
    "folder": "the run directory, which rank 0 alone writes to",
    "seed": "of the run",
}
"""What the run gives a factory that names it in its signature; all else there is an option."""


def check_probes(items: Sequence[Any]) -> list[Listed]:
    """Check ``config.probes`` as far as possible before there is a run.

    Raises:
        UserError: one line naming the item and what is wrong with it.
    """
    return check_list(probes, items, OFFERS)


def build_probes(items: Sequence[Any], offers: Mapping[str, Any], clock: Clock) -> list[Instrument]:
    """Return the instruments that ``config.probes`` names, in its order.

    Args:
        offers: a value for each of :data:`OFFERS` but ``every``.

    Raises:
        UserError: an item is wrong, or its factory refuses or returns something else.
    """
    made = []
    for listed in check_probes(items):
        every = None if listed.every is None else Every(listed.every, clock)
        instrument = make(probes, listed, {**offers, "every": every})
        if not isinstance(instrument, Instrument):
            raise UserError(
                f"{listed.where}.name={listed.name!r}: returned a {type(instrument).__name__}, not"
                " a largebatch.probes.Instrument"
            )
        instrument.name, instrument.listed = listed.name, True
        if every is not None:
            instrument.every = every
        made.append(instrument)
    return made
