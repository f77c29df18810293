"""The base class of instruments: they watch a run while it trains, and change no bit of the run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from largebatch.data import Batch
from largebatch.optim.squares import Squares
from largebatch.probes.replay import Replay
from largebatch.schedule import Every, Step

MomentName: TypeAlias = Literal["gradients", "exchanged", "stepped", "evaluated", "end"]

MOMENTS: dict[str, str] = {
    "gradients": "a step's passes are over: `grad` holds this rank's part, times the loss scale",
    "exchanged": "`grad` holds the sum over all ranks, times the loss scale; squares are known",
    "stepped": "the optimizer has taken the step",
    "evaluated": "the figures of an evaluation are there, and not written yet",
    "end": "the run is over, and its last checkpoint not written yet",
}
"""The moments at which an instrument may measure, and what is true at each."""


@dataclass
class Moment:
    """The view of the run that an instrument gets; valid only during the call.

    Attributes:
        step: the last step, over all ranks.
        number: number of this step, from 1.
        model: the user's model; do not change its weights or statistics.
        optimizer: the optimizer of the parameters of ``model``.
        loss: computes the training loss of a batch under the present weights: the mean, 0-d, with a
            graph for ``torch.autograd.grad``. Norms normalise as in training and keep their
            statistics; dropout draws the same masks at each call.
        held: returns the first ``n`` samples of the validation set, the same on every rank.
        evaluate: returns the validation figures under other weights, given by their names in
            ``state_dict``. Every rank must call this alike.
        finish: asks the run to end here, with the usual evaluation and checkpoint. Takes the
            figures that are the reason, for ``target`` in summary.json. Every rank must call this
            alike.
        squares: squared norms of gradients, for instruments with ``reads_squares``. With SAM, which
            takes two gradients a step, those of the first.
        batch: the batch of this rank's last pass of the step, until the step is over; None without
            a pass.
        parts: number of samples in each of this rank's passes of the step, without idle passes.
        replay: repeats the step's passes, for instruments with ``replays``. Available from
            ``stepped`` on, until the next step begins.
        left_out: 0-d, not 0 if the step was skipped because gradients were not finite; None if
            steps are never skipped.
        record: at ``evaluated``, the figures by their names in metrics.jsonl; rank 0's, on every
            rank.
    """

    step: Step
    number: int
    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[Batch], Tensor]
    held: Callable[[int], Batch]
    evaluate: Callable[[Mapping[str, Tensor]], dict[str, float]]
    finish: Callable[[Mapping[str, float]], None]
    squares: Squares | None = None
    batch: Callable[[], Batch | None] = lambda: None
    parts: tuple[int, ...] = ()
    replay: Callable[[], Replay | None] = lambda: None
    left_out: Tensor | None = None
    record: Mapping[str, Any] = field(default_factory=dict)


class Instrument(ABC):
    """Base of the instruments.

    Attributes:
        name: key of its state in checkpoints; set by the code that builds the instrument.
        moment: when it measures, see :data:`MOMENTS`.
        reads_squares: whether it reads :attr:`Moment.squares`, which cost a pass over the gradients
            at each measured step.
        replays: whether it uses :attr:`Moment.replay`. A rank's batches of a measured step are then
            kept in memory to the end of the step.
        resumes: whether the run's results depend on its state. A run cannot resume from a
            checkpoint without this state, or with a state that is not finite.
        every: which steps are measured; None: every step.
        listed: whether ``config.probes`` names it. A session that measured none of its steps then
            says so.
    """

    name = ""
    moment: MomentName = "stepped"
    reads_squares = False
    replays = False
    resumes = False
    every: Every | None = None
    listed = False

    def due(self, step: Step, number: int) -> bool:
        """Return whether to measure step ``number`` (from 1); must be the same on every rank."""
        return self.every is None or self.every.due(step, number)

    def begin(self, samples: int, steps: int) -> str | None:
        """Start work before the first step of a session; return a message for the user.

        Every rank calls it, after :meth:`load` if the run goes on from a checkpoint.

        Args:
            samples, steps: samples seen and steps taken by then.
        """
        return None

    def before(self, at: Moment) -> None:  # noqa: B027
        """Prepare for a measured step, if the instrument measures inside the step or replays it.

        Called before the step's passes, and again if the passes have to be repeated.
        """

    @abstractmethod
    def measure(self, at: Moment) -> Mapping[str, Tensor]:
        """Return figures, 0-d or small tensors, still on the device: reading them here would wait.

        Called on every rank. Must not change the run: no weight, statistic or gradient.
        """

    def write(self, step: Step, number: int, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Receive the figures of :meth:`measure` as numbers; return what to add to the step's line.

        Called on every rank; the result of rank 0 is written. Figures of a step arrive one step
        later. Figures of ``evaluated`` join the line of the evaluation, figures of ``end`` join
        summary.json.
        """
        return values

    def close(self) -> str | None:
        """End the work of a session, also after an error; return a message for the user."""
        return None

    def state(self) -> Any:
        """Return the state to resume from (tensors, numbers, dicts, lists), or None.

        Called on every rank; rank 0's result is saved.
        """
        return None

    def check(self, state: Any) -> None:  # noqa: B027
        """Check a state from a checkpoint before any of the checkpoint is restored.

        Raises:
            ValueError: why the state cannot be this instrument's, in a few words.
        """

    def load(self, state: Any) -> None:  # noqa: B027
        """Restore a result of :meth:`state`, on any number of ranks."""
