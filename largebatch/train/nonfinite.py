"""Count losses, gradients and weights that are inf or nan; end a run that learns nothing.

A step is counted if its loss over all ranks is not finite, or if its gradients are known to be not
finite. The latter is known from their norm if gradients are clipped, from the scaler under fp16,
and from an extra norm under ``run.on_nonfinite: skip``. Otherwise such gradients show in the loss
of the next step. Nothing extra is sent or waited for: the numbers come with those that every rank
reads one step later.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from largebatch._errors import Lost, UserError
from largebatch.data import Batch
from largebatch.optim.parameters import local
from largebatch.processes.agreement import agreed, gathered
from largebatch.schedule import Step
from largebatch.train import checkpoint
from largebatch.train.build import Parts
from largebatch.train.finite import is_lost, tensors_of
from largebatch.train.progress import say

# From 65536, where torch's scaler starts, as many halvings lead to 1/16: no search for a scale that
# finds one takes longer, and the large-batch step that nothing can save is not repeated for hours.
MOST_IN_A_ROW = 20
SMALLEST_SCALE = 1e-4  # of the loss under fp16: below it gradients vanish (fairseq's limit)

ANOTHER_RUN = (
    "another run.dir with a lower optim.lr or a longer schedule.warmup may go on from one by"
    " checkpoint.resume"
)
SCALE_REMEDY = (
    "a smaller precision.loss_scale, bf16 or a lower optim.lr may help in another run.dir"
)
OR_SKIP = ", or leave such steps out with run.on_nonfinite=skip"

COUNTS = ("steps", "in_a_row", "evaluations")
INPUT, LOSS, GRADIENT, WEIGHT, UNKNOWN = range(5)


class NonFinite:
    """Counts the non-finite steps of a run, on every rank alike.

    Args:
        mode: ``run.on_nonfinite``.
        checkpoints: the run's checkpoint folder, for messages.

    Attributes:
        steps, in_a_row: number of steps that were not finite, in total and since the last finite
            step.
        evaluations: number of evaluations whose loss was not finite.
    """

    def __init__(self, mode: str, parts: Parts, checkpoints: Path) -> None:
        self._mode, self._parts, self._checkpoints = mode, parts, checkpoints
        self.steps = self.in_a_row = self.evaluations = 0
        self._first: tuple[Step, int, bool] | None = None  # of the row; whether by its own loss
        self._constant = parts.constants
        self._told = False

    def state(self) -> dict[str, int]:
        """Return the counts that are not 0, for a checkpoint."""
        counts = {name: int(getattr(self, name)) for name in COUNTS}
        return {name: count for name, count in counts.items() if count}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore a result of :meth:`state`.

        Raises:
            UserError: the state has another form.
        """
        for name, count in state.items():
            if name not in COUNTS or type(count) is not int or count < 0:
                raise UserError(f"the checkpoint's position: nonfinite {name}={count!r}: no count")
            setattr(self, name, count)

    def figures(self) -> dict[str, int]:
        """Return the counts for lines of the metrics; nothing while everything is finite."""
        return {"nonfinite_steps": self.steps} if self.steps else {}

    def count(
        self,
        step: Step,
        number: int,
        loss: float,
        own: Tensor | None,
        clip_factor: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        """Record a step.

        Args:
            number: of the step, from 1.
            loss: sum of the loss over all ranks.
            own: this rank's ``[loss, ...]``.
            clip_factor, found_inf: what the engine knows about the gradients, 0-d.
        """
        finite = (
            math.isfinite(loss)
            and (clip_factor is None or float(clip_factor) > 0)  # 0: the norm is infinite
            and (found_inf is None or float(found_inf) == 0)
        )
        if finite:
            self.in_a_row, self._first = 0, None
            return
        self.steps += 1
        self.in_a_row += 1
        if self._first is None:
            by_loss = own is not None and not math.isfinite(float(own[0]))
            self._first = (step, number, by_loss)
        # A few overflows are how fp16 finds its scale.
        if not self._told and (found_inf is None or not math.isfinite(loss)):
            self._told = True
            what = "loss" if not math.isfinite(loss) else "gradient"
            follows = "left out; others" if self._mode == "skip" else "others"
            self._say(f"step {number} ({step.end:,} samples): the {what} is not finite; {follows}"
                      " like it are counted")  # fmt: skip

    def require_progress(self) -> None:
        """End a run that has had no finite step for long, unless the config says to continue.

        Raises:
            Lost: raised on every rank.
        """
        if self._mode == "ignore" or not self.in_a_row:
            return
        scale = self._parts.engine.loss_scale()
        if scale is not None and scale < SMALLEST_SCALE:
            raise self._failure(f"the loss scale has sunk to {scale:.3g}")
        if self.in_a_row >= MOST_IN_A_ROW:
            raise self._failure("")

    def require_finite(
        self, state: dict[str, Any] | None, samples: int, taken: int | None = None
    ) -> bool:
        """Return whether ``state`` may be saved: a good checkpoint is never replaced by a lost one.

        Args:
            state: the run's state on rank 0; None on other ranks.
            taken: number of steps, for a run that ends here. Such a run must have had a finite step
                and must have finite weights, in any mode.

        Raises:
            Lost: the state may not be saved and the run may not continue; raised on every rank.
        """
        name = None if state is None else self.first_of(state)
        name = agreed(name, self._parts.world)
        if taken and self.steps >= taken:
            raise self._failure("no step of the run was finite")
        if name is None:
            return True
        if self._mode != "ignore" or taken is not None:
            raise self._failure(f"{name} is not finite at {samples:,} samples")
        self._say(
            f"no checkpoint at {samples:,} samples: {name} is not finite; {self._last_good()}"
        )
        return False

    def require_loadable(self, state: dict[str, Any]) -> None:
        """Refuse a checkpoint that no run can learn from.

        Raises:
            UserError: the message names the tensor.
        """
        name = self.first_of(state)
        if name is not None:
            raise UserError(
                f"the checkpoint at {state['position']['samples']} samples holds no finite run:"
                f" {name} is not finite; remove it, or name an earlier one by checkpoint.resume"
            )

    def evaluated(self, loss: float, samples: int) -> None:
        """Record the loss of an evaluation; tell bad weights from bad validation data.

        Raises:
            Lost: the weights are not finite, and the run may not continue.
        """
        if math.isfinite(loss):
            return
        self.evaluations += 1
        world = self._parts.world
        name = _first(gathered(self._of_model(), world))
        if name is not None:
            if self._mode != "ignore":
                raise self._failure(f"{name} is not finite at {samples:,} samples")
            return
        if self.evaluations == 1:
            found = _first(gathered(_lost_input(self._parts.evaluator.batches()), world))
            why = "all inputs are" if found is None else f"the input of validation {found} is not"
            self._say(
                f"evaluation at {samples:,} samples: weights are finite, the loss is not; {why}"
            )

    def first_of(self, state: dict[str, Any]) -> str | None:
        """Return the name of the first tensor of a run's state that is not finite, else None."""
        _, tensors = checkpoint.flatten(state)
        names = {id(p): n for n, p in self._parts.model.named_parameters()}
        groups = self._parts.optimizer.param_groups
        order = [names.get(id(param)) for group in groups for param in group["params"]]
        for path, tensor in tensors.items():
            section, _, rest = path.lstrip("/").partition("/")
            if section == "instruments":  # what they have seen may be anything
                continue
            if rest.rpartition("/")[2] in self._constant or not is_lost(tensor):
                continue
            kind, _, entry = rest.partition("/")
            number, _, key = entry.partition("/")
            if section == "optimizer" and kind == "state" and int(number) < len(order):
                return f"{key} of {order[int(number)]}"
            return rest if section == "model" else f"{section} {rest}".rstrip()
        return None

    def _of_model(self) -> str | None:
        """Name this rank's first parameter or buffer that is not finite, None if all are."""
        for name, tensor in tensors_of(self._parts.model):
            if name not in self._constant and is_lost(local(tensor.detach())):
                return name
        return None

    def _failure(self, why: str) -> Lost:
        """Say where it began, by looking after the fact; every rank must call it."""
        begun, remedy = "", ANOTHER_RUN
        scale = self._parts.engine.loss_scale()
        if self._first is not None:
            step, number, _ = self._first
            everyone = gathered(self._seen(), self._parts.world)
            (kind, _, found), rank = min((seen, rank) for rank, seen in enumerate(everyone))
            begun = (
                f"step {number} ({step.end:,} samples), rank {rank}: {found};"
                f" {_steps(self.in_a_row)} in a row not finite"
            )
            why = why and f", and {why}"
            if kind == INPUT:
                remedy = "mend the data" + OR_SKIP * (self._mode != "skip")
            elif kind == GRADIENT and scale is not None:
                remedy = f"the loss scale is {scale:.3g} now: {SCALE_REMEDY}"
        mode = f"run.on_nonfinite={self._mode}"
        text = f"{begun}{why} ({mode}); {self._last_good()}; {remedy}"
        return Lost(text if self._parts.world.is_main else "")  # one line, of rank 0

    def _seen(self) -> tuple[int, int, str]:
        """Return what this rank sees: a kind, a number to order within it, and its words."""
        assert self._first is not None
        step, _, by_loss = self._first
        sample = _lost_input(self._parts.feed.again(step))
        if sample is not None:
            return INPUT, 0, f"the input of training {sample} is not finite"
        if by_loss:
            return LOSS, 0, "the loss is not finite, all inputs are: the model has diverged"
        for index, (name, param) in enumerate(self._parts.model.named_parameters()):
            if param.grad is not None and is_lost(local(param.grad)):
                return GRADIENT, index, f"the gradient of {name} is not finite"
        lost = self._of_model()
        if lost is not None:
            return WEIGHT, 0, f"{lost} is not finite"
        return UNKNOWN, 0, "the gradients are not finite"

    def _last_good(self) -> str:
        newest = checkpoint.latest_name(self._checkpoints)
        if newest == "none":
            return "there is no checkpoint yet"
        return f"the last good checkpoint is {newest}"

    def _say(self, text: str) -> None:
        if self._parts.world.is_main:
            say(text)


def _lost_input(batches: Iterable[Batch]) -> str | None:
    """Name the first sample whose input is not finite, None if all are."""
    for batch in batches:
        mixed = getattr(batch, "mixed", None) is not None
        for tensor in batch.tensors():
            if not tensor.is_floating_point():
                continue
            lost = ~tensor.isfinite().flatten(1).all(1)
            if lost.any():
                index = batch.indices[int(lost.nonzero()[0])]
                return f"sample {index}{' (or what is mixed into it)' if mixed else ''}"
    return None


def _first(names: Iterable[str | None]) -> str | None:
    return next((name for name in names if name is not None), None)


def _steps(count: int) -> str:
    return f"{count} step" if count == 1 else f"{count} steps"
