"""What watches a run while it trains, and changes no bit of it."""

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
    """What an instrument sees of the run. Only to be used during the call it is handed to.

    Attributes:
        step: the last step, over all ranks. number: of that step, from 1.
        model: the user's; its weights and statistics are to be left as they are.
        optimizer: over the parameters of ``model``.
        loss: of a batch under the weights as they are: the mean that training descends along, 0-d,
            with a graph to take derivatives from by ``torch.autograd.grad``. Norms normalise as in
            training and statistics stay; dropout draws the same at each call.
        held: the first ``n`` samples of the validation set, the same on every rank.
        evaluate: the figures of the validation set with other weights in the model's place, by
            their names in ``state_dict``; every rank must call it alike.
        finish: asks that the run end here, evaluated and saved as ever: with the figures that are
            the reason, for ``target`` in summary.json. Every rank must call it alike.
        squares: squared norms of gradients, for an instrument that says it reads them; where SAM
            takes two gradients a step, of the first.
        batch: of this rank's last pass of the step, until the step is over; None if it has none.
        parts: samples of each of this rank's passes of the step, without idle ones.
        replay: the step's passes once more, for an instrument that says it replays; from
            ``stepped`` on, until the next step begins.
        left_out: 0-d, not 0 if the step changed nothing since it was not finite; None where steps
            are not left out.
        record: at ``evaluated`` the figures, under the names they have in metrics.jsonl; of rank 0
            on every rank.
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
        name: under which its state lies in checkpoints; set by whoever builds it.
        moment: when it measures, see :data:`MOMENTS`.
        reads_squares: whether it reads :attr:`Moment.squares`, which cost a pass over the gradients
            of each step that it is due at.
        replays: whether it asks for :attr:`Moment.replay`, so that a rank's batches of a step that
            it is due at are held in memory to the end of the step.
        resumes: whether the run's results hang on its state, so that a checkpoint without it, or
            with one that is not finite, is none to go on from.
        every: which steps are due; None: each.
    """

    name = ""
    moment: MomentName = "stepped"
    reads_squares = False
    replays = False
    resumes = False
    every: Every | None = None

    def due(self, step: Step, number: int) -> bool:
        """Whether to measure at a step, the ``number``-th from 1: on every rank alike."""
        return self.every is None or self.every.due(step, number)

    def begin(self, samples: int, steps: int) -> str | None:
        """Take up work before the first step of a session; return what to tell the user of it.

        Every rank calls it, after :meth:`load` if the run goes on from a checkpoint.

        Args:
            samples, steps: seen and taken by then.
        """
        return None

    def before(self, at: Moment) -> None:  # noqa: B027
        """Get ready for a step it is due at, if its moment lies in the midst of one, or it replays.

        It is called before the step's passes, and again where these have to be made once more.
        """

    @abstractmethod
    def measure(self, at: Moment) -> Mapping[str, Tensor]:
        """Return figures, 0-d or small tables, still on the device: reading them here would wait.

        Every rank calls it. It may change nothing of the run: no weight, statistic or gradient.
        """

    def write(self, step: Step, number: int, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Take in what :meth:`measure` found, as numbers; return what joins the step's line.

        Called on every rank, one step later for those of a step; what joins is rank 0's. Figures
        of ``evaluated`` join the line of the evaluation, those of ``end`` summary.json.
        """
        return values

    def close(self) -> str | None:
        """End the work of a session, however it ended; return what to tell the user."""
        return None

    def state(self) -> Any:
        """Return what a continuation needs, None if nothing: of tensors, numbers, dicts, lists.

        Every rank calls it; rank 0's is kept.
        """
        return None

    def check(self, state: Any) -> None:  # noqa: B027
        """Look at a state of a checkpoint before any of it is put back.

        Raises:
            ValueError: in a few words, why it cannot be this instrument's.
        """

    def load(self, state: Any) -> None:  # noqa: B027
        """Go on from what :meth:`state` returned, on any number of ranks."""
