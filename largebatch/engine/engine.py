"""The interface of an engine, which owns the exchange of gradients and the optimizer's step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from largebatch import _ops
from largebatch._errors import UserError
from largebatch.distributed.sharding import part_like, whole
from largebatch.optim.gradient_norm import norm_parts
from largebatch.optim.squares import Apart, Squares
from largebatch.processes.environment import World


class Engine(ABC):
    """Base of the engines: owns the gradients of ``model`` on every rank, and the optimizer's step.

    A step begins with :meth:`begin`. Every pass is a forward through :attr:`module` and a
    :meth:`backward`; :meth:`last` is called before the final pass. Then come :meth:`finish` and
    :meth:`update`. A rank without passes calls begin, finish and update. Afterwards all ranks have
    taken the same step, along the sum of the gradients from :meth:`backward`.

    Attributes:
        name: the engine's name in ``distributed.engine``.
        model: the user's model: its parameters, buffers and evaluation.
        module: the module that training's forward passes call; ``model`` itself unless a library
            wraps it.
        alone: whether there is only this rank.
        lockstep: whether every rank must make the same number of passes, since passes exchange
            messages.
        own_gradients: whether each rank's own gradients can stay in ``grad`` until :meth:`finish`,
            see :meth:`last`.
        repeats: whether a step's passes may be repeated without an update; ``grad`` of every
            parameter holds the sum after :meth:`finish`.
        apart: which parts of a step :meth:`watch_squares` can measure separately, if any.
        flattens: whether the optimizer steps flat partitions in place of the model's parameters.
        skip: whether to skip a step whose loss or gradients are not finite. Under fp16 a step with
            gradients that are not finite is always skipped.
        squares: the squared norms of gradients, after :meth:`watch_squares`.
        found_inf: 0-d, not 0 if the last step was skipped; set only if steps may be skipped.
    """

    name = ""
    lockstep = False
    own_gradients = False
    repeats = True
    apart: tuple[Apart, ...] = ()
    flattens = False
    skip = False
    found_inf: Tensor | None = None

    def __init__(self, model: nn.Module, world: World) -> None:
        self.model, self.module, self.world = model, model, world
        self.alone = world.world_size == 1
        self.optimizer: torch.optim.Optimizer
        self.scaler: torch.amp.GradScaler | None = None
        self.squares: Squares | None = None

    def adopt(
        self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None = None
    ) -> None:
        """Take over ``optimizer`` (of parameters of :attr:`model`) and the loss scaler."""
        self.optimizer, self.scaler = optimizer, scaler

    @abstractmethod
    def begin(self) -> None:
        """Clear the gradients."""

    @abstractmethod
    def last(self, overlap: bool = True) -> None:
        """Announce the step's last backward pass: complete gradients may be sent at once.

        Args:
            overlap: False: keep the gradients local until :meth:`finish`, if :attr:`own_gradients`.
        """

    def backward(self, loss: Tensor, factor: float) -> None:
        """Add the gradient of ``factor`` x ``loss`` (0-d) to this rank's gradients."""
        scaled = loss if self.scaler is None else self.scaler.scale(loss)
        # Not backward(factor): to check that, torch imports its symbolic shapes for half a second.
        (scaled * factor).backward()

    @abstractmethod
    def finish(self) -> None:
        """Wait until every gradient is the sum over all ranks."""

    def update(
        self, clip: Callable[[], Tensor | None], loss: Tensor | None = None
    ) -> Tensor | None:
        """Clip and take the optimizer's step; return the clip factor if there is one.

        A skipped step changes no parameter and no optimizer state, on any rank.

        Args:
            clip: clips the unscaled gradients and returns the factor.
            loss: loss of the step over all ranks, 0-d; with :attr:`skip` it must be finite too.
        """
        overflow: Any = None
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
            overflow = sum(self.scaler._found_inf_per_device(self.optimizer).values())
        factor = clip()
        self.found_inf = self._found_inf(factor, loss, overflow) if self.skip else overflow
        if self.found_inf is None:
            self.optimizer.step()
        else:
            step_unless(self.found_inf, self.optimizer)
        if self.scaler is not None:
            self.scaler.update()
        return factor

    def _found_inf(
        self, factor: Tensor | None, loss: Tensor | None, overflow: Tensor | None
    ) -> Tensor:
        """Return 1 if the gradients or the loss are not finite, else 0: float32, 0-d."""
        if overflow is not None:
            fine = overflow == 0
        elif factor is not None:
            fine = factor > 0  # of a norm that is no number it is none, of an infinite one 0
        else:
            params = [param for group in self.optimizer.param_groups for param in group["params"]]
            fine = _ops.global_norm(norm_parts("run.on_nonfinite=skip", params)).isfinite()
        if loss is not None:
            fine = fine & loss.to(fine.device).isfinite()
        return (~fine).float()

    @property
    def may_skip(self) -> bool:
        """Whether a step may be skipped, so that :attr:`found_inf` is set."""
        return self.skip or self.scaler is not None

    def loss_scale(self) -> float | None:
        """Return the scale of the loss under fp16, else None."""
        return None if self.scaler is None else self.scaler.get_scale()

    def scale_now(self) -> Tensor | None:
        """Return the scale of the loss of this step under fp16, 0-d, without waiting for it."""
        return None if self.scaler is None else self.scaler._get_scale_async()

    def sum(self, values: Tensor) -> Any:
        """Sum a small tensor over ranks in place; return a work to wait for, None on one rank."""
        return None if self.alone else dist.all_reduce(values, async_op=True)

    def watch_squares(self) -> Squares:
        """Return the squared norms of gradients, which the engine computes on request.

        Raises:
            UserError: the engine does not expose each rank's own gradients.
        """
        raise UserError(
            f"probes: distributed.engine={self.name} keeps the gradients of each rank to itself,"
            " and their squared norms are asked for; take ddp"
        )

    def evaluating(self) -> AbstractContextManager[object]:
        """Return a context in which ranks may make any number of forward passes each."""
        return nullcontext()

    # Checkpoints hold whole tensors, so that a run may go on under another engine.

    def weights(self) -> dict[str, Tensor]:
        """Return the model's ``state_dict`` in whole tensors; every rank must call this."""
        state: dict[str, Tensor] = whole(self.model.state_dict())
        return state

    def load_weights(self, state: dict[str, Tensor]) -> None:
        """Load a result of :meth:`weights` from any engine."""
        own = self.model.state_dict()
        self.model.load_state_dict(
            {name: part_like(tensor, own.get(name, tensor)) for name, tensor in state.items()}
        )

    def optimizer_state(self) -> dict[str, Any]:
        """Return the optimizer's ``state_dict`` in whole tensors; every rank must call this."""
        state: dict[str, Any] = whole(self.optimizer.state_dict())
        return state

    def load_optimizer_state(self, state: dict[str, Any]) -> None:
        """Load a result of :meth:`optimizer_state` from any engine."""
        numbers = [number for group in state["param_groups"] for number in group["params"]]
        params = [param for group in self.optimizer.param_groups for param in group["params"]]
        if len(numbers) == len(params):  # otherwise the optimizer says what does not fit
            of = dict(zip(numbers, params, strict=True))
            state = {
                **state,
                "state": {
                    number: {
                        key: part_like(value, of[number]) if isinstance(value, Tensor) else value
                        for key, value in entries.items()
                    }
                    for number, entries in state["state"].items()
                },
            }
        self.optimizer.load_state_dict(state)

    def scaler_state(self) -> dict[str, Any] | None:
        """Return the state of loss scaling under fp16, else None."""
        return None if self.scaler is None else self.scaler.state_dict()

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        """Load a result of :meth:`scaler_state` from any engine."""
        if self.scaler is not None:
            self.scaler.load_state_dict(state)

    def exchange_state(self) -> dict[str, Any] | None:
        """Return measurements that affect the order of sums in the exchange; None without any."""
        return None

    def load_exchange_state(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Restore a result of :meth:`exchange_state`, as far as it fits these ranks."""


@torch.no_grad()
def broadcast_from_first(model: nn.Module) -> None:
    """Copy rank 0's parameters and buffers to every rank."""
    for tensor in [*model.parameters(), *model.buffers()]:
        dist.broadcast(tensor.data if tensor.is_contiguous() else _owned(tensor), 0)


def _owned(tensor: Tensor) -> Tensor:
    """Return the memory of a dense permuted tensor (channels_last) as a flat view."""
    return tensor.data.as_strided((tensor.numel(),), (1,), tensor.storage_offset())


def step_unless(found_inf: Tensor, optimizer: Any) -> None:
    """Take a step unless ``found_inf`` (0-d, float32) is not 0, as ``torch.amp.GradScaler`` does.

    An optimizer with ``_step_supports_amp_scaling`` skips its step on the device. For any other
    optimizer the host waits for ``found_inf``.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.grad_scale, optimizer.found_inf = None, found_inf
        try:
            optimizer.step()
        finally:
            del optimizer.grad_scale, optimizer.found_inf
    elif not found_inf.item():
        optimizer.step()
