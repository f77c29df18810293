"""Run all instruments of a run, each at its moment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from largebatch.probes.instrument import MOMENTS, Instrument, Moment, MomentName
from largebatch.schedule import Step

Found: TypeAlias = list[tuple[Instrument, Mapping[str, Tensor]]]
I = TypeVar("I", bound=Instrument)  # noqa: E741

OF_THE_GRADIENTS: tuple[MomentName, ...] = ("gradients", "exchanged")


class Watch:
    """A callable for the engine, called with a moment's name between the passes and the update.

    Attributes:
        holds: whether each rank's own gradients must be kept until the moment ``gradients``.
        replays: whether an instrument asks to repeat the step's passes.

    Args:
        due: the instruments that read the step's gradients, or replay the step.
        found: list that collects their figures.
    """

    def __init__(self, due: list[Instrument], at: Moment, found: Found) -> None:
        self.holds = any(instrument.moment == "gradients" for instrument in due)
        self.replays = any(instrument.replays for instrument in due)
        self._due, self._at, self._found = due, at, found

    def __call__(self, moment: MomentName) -> None:
        """Ask those whose moment it is."""
        due = (i for i in self._due if i.moment == moment)
        self._found.extend((i, i.measure(self._at)) for i in due)


class Panel:
    """Calls every instrument of a run at its moment, in the order given."""

    def __init__(self, instruments: Iterable[Instrument]) -> None:
        self._all = list(instruments)
        names = [instrument.name for instrument in self._all]
        assert len(set(names)) == len(names), f"two instruments of one name: {names}"
        self._at = {name: [i for i in self._all if i.moment == name] for name in MOMENTS}
        self._stepped = self._at["stepped"]
        watching = [i for name in OF_THE_GRADIENTS for i in self._at[name]]
        self._watching = watching + [i for i in self._stepped if i.replays]
        self._of_squares = [i for i in self._all if i.reads_squares]
        self._idle = {i.name for i in self._all if i.listed and i.every is not None}
        self._steps = 0

    def __iter__(self) -> Iterator[Instrument]:
        return iter(self._all)

    def find(self, kind: type[I]) -> I | None:
        """Return the first instrument of a kind, None if there is none."""
        return next((i for i in self._all if isinstance(i, kind)), None)

    @property
    def reads_squares(self) -> bool:
        """Whether any instrument reads squared norms of gradients."""
        return bool(self._of_squares)

    def begin(self, samples: int, steps: int, say: Callable[[str], None]) -> None:
        """Start all instruments, and print their messages."""
        for instrument in self._all:
            told = instrument.begin(samples, steps)
            if told:
                say(told)

    def watch(self, at: Moment, found: Found) -> Watch | None:
        """Return the callable for the time between the passes and the update of a step.

        Args:
            found: list that collects the instruments' figures.

        Returns:
            None if no instrument looks at the step's gradients or replays it.
        """
        step, number = at.step, at.number
        if at.squares is not None:
            at.squares.wanted = any(i.due(step, number) for i in self._of_squares)
        if not self._watching:
            return None
        due = [i for i in self._watching if self._due(i, step, number)]
        for instrument in due:
            instrument.before(at)
        return Watch(due, at, found) if due else None

    def stepped(self, at: Moment, found: Found) -> None:
        """Call the instruments that are due after a step; ``found`` collects their figures."""
        step, number = at.step, at.number
        self._steps += 1
        for instrument in self._stepped:
            if self._due(instrument, step, number):
                values = instrument.measure(at)
                if values:
                    found.append((instrument, values))

    def ask(self, moment: MomentName, at: Moment) -> dict[str, Any]:
        """Call the due instruments of ``evaluated`` or ``end`` and return their figures at once."""
        step, number = at.step, at.number
        found = [(i, i.measure(at)) for i in self._at[moment] if self._due(i, step, number)]
        return self.read(step, number, found)

    def read(self, step: Step, number: int, found: Found) -> dict[str, Any]:
        """Pass a step's figures to the instruments; return what to add to the step's line."""
        joining: dict[str, Any] = {}
        for instrument, values in found:
            if values:
                joining.update(instrument.write(step, number, _numbers(values)))
        return joining

    def close(self, say: Callable[[str], None]) -> None:
        """Close all instruments, and print their messages."""
        for instrument in self._all:
            told = instrument.close()
            if told:
                say(told)
        for name in sorted(self._idle) if self._steps else ():
            say(
                f"probes: {name}: none of the {self._steps:,} steps of this session was measured;"
                " set every, such as every: 1st"
            )

    def _due(self, instrument: Instrument, step: Step, number: int) -> bool:
        due = instrument.due(step, number)
        if due:
            self._idle.discard(instrument.name)
        return due


def _numbers(values: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read tensors, those of one form in one transfer."""
    first, *others = values.values()
    form = (first.shape, first.dtype, first.device)
    if others and all((t.shape, t.dtype, t.device) == form for t in others):
        return dict(zip(values, torch.stack([first, *others]).tolist(), strict=True))
    return {name: value.tolist() for name, value in values.items()}
