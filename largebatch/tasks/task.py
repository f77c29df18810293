"""The interface of a task: forward pass, loss, figures, and weight of a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from largebatch._errors import UserError, raised
from largebatch.data import Batch
from largebatch.models import as_before
from largebatch.tasks.carry import Carry
from largebatch.tasks.config import TaskConfig
from largebatch.tasks.figure import LOSS, Figure

B = TypeVar("B", bound=Batch)


@dataclass(frozen=True)
class Atom:
    """The undivided unit of a step: ``size`` consecutive samples, never fewer than ``minimum``.

    A size of 0 sets no limit.
    """

    size: int = 0
    minimum: int = 1


class Task(ABC, Generic[B]):
    """Forward, loss and figures of a step.

    The loss is a *sum*. The trainer divides by the weight of the whole step over all ranks, so that
    uneven shares are exact.

    Attributes:
        config: the dataclass of the ``task`` section's keys, derived from :class:`TaskConfig`.
        figures: names of the sums between loss and weight.
        headline: the figure that progress, reports and summaries show.
    """

    config: ClassVar[type[TaskConfig]] = TaskConfig
    figures: tuple[str, ...] = ()
    headline: Figure = LOSS

    def atom(self) -> Atom:
        """Return the atom of a step; it is combined with that of the norms."""
        return Atom()

    def offers(self, offers: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values that models may take: the data's offers, and the task's additions."""
        return dict(offers)

    def complete(self, model: nn.Module) -> nn.Module:
        """Return a new model with the task's additions, such as a head."""
        return model

    def step_weight(self, samples: int) -> float | None:
        """Return the weight of a step of ``samples``, which the loss sum is divided by.

        None: the weight is known only from the batches. Ranks then sum it before the backward pass.
        """
        return None

    @abstractmethod
    def weight(self, batch: B) -> float:
        """Return the batch's part of the weight, which the loss sum is divided by."""

    @abstractmethod
    def train(self, model: nn.Module, batch: B) -> tuple[Tensor, Tensor]:
        """Return (loss sum with gradient, the batch's sums ``[loss, *figures, weight]``)."""

    @abstractmethod
    def evaluate(self, model: nn.Module, batch: B) -> Tensor:
        """Return the batch's sums ``[loss, *figures, weight]``."""

    def read(self, sums: Sequence[float]) -> dict[str, float]:
        """Turn sums over batches and ranks into figures.

        Figures are means by default. Other figures, such as perplexity, are computed here.
        """
        weight = max(sums[-1], 1.0)
        names = ("loss", *self.figures)
        return {name: value / weight for name, value in zip(names, sums[:-1], strict=True)}

    def known(self, name: str) -> Figure:
        """Return the figure of this name: which direction is better, and its usual form.

        Figures of further evaluations, such as ``ema_loss``, are like those of the plain weights.
        """
        known = {LOSS.name: LOSS, self.headline.name: self.headline}
        _, _, plain = name.partition("_")
        if name in known or not plain:
            return known.get(name, Figure(name))
        return replace(self.known(plain), name=name)

    def no_sums(self, device: torch.device) -> Tensor:
        """Return the float64 sums of no batch."""
        return torch.zeros(2 + len(self.figures), dtype=torch.float64, device=device)

    def carry(self) -> Carry | None:
        """Return the memory carried from step to step, if there is one."""
        return None

    def undisturbed(self) -> AbstractContextManager[object]:
        """Return a context for passes outside of training, which leaves the memory unchanged."""
        carry = self.carry()
        return nullcontext() if carry is None else carry.frozen()

    def try_model(self, model: nn.Module, name: str, batch: B, training: bool) -> None:
        """Try ``model`` on a batch before any work; the model is restored afterwards.

        Args:
            name: ``model.name``, for messages.
            training: whether to try a training step as well; otherwise only evaluation.

        Raises:
            UserError: the task cannot train the model; the message is one line.
        """
        with as_before(model), self.undisturbed():
            model.eval()
            with self._refusing(name, "in evaluation"), torch.no_grad():
                sums = self.evaluate(model, batch)
            expected = self.no_sums(torch.device("cpu")).shape
            if sums.shape != expected:
                raise UserError(
                    f"task: evaluate returned sums of shape {tuple(sums.shape)}; expected"
                    f" {tuple(expected)}: loss, {', '.join((*self.figures, 'weight'))}"
                )
            if not training:
                return
            model.train()
            with self._refusing(name, "in training"), torch.enable_grad():
                loss, _ = self.train(model, batch)
            if not loss.requires_grad:
                raise UserError(
                    f"model.name={name}: its loss depends on no trainable parameter: forward"
                    " detaches it, or runs under no_grad"
                )
            trainable = [p for p in model.parameters() if p.requires_grad]
            with self._refusing(name, "in its backward pass"):
                torch.autograd.grad(loss, trainable, allow_unused=True)

    @contextmanager
    def _refusing(self, name: str, when: str) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"model.name={name}: does not fit the task: {when} it raised {raised(error)}"
            ) from error


@runtime_checkable
class Votes(Protocol):
    """Further methods of a task that snapshot ensembles need."""

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        """Return log-probabilities, which are averaged over the members."""
        ...

    def score(self, log_probabilities: Tensor, batch: Any) -> Tensor:
        """Return the batch's sums ``[loss, *figures, weight]`` of log-probabilities."""
        ...
