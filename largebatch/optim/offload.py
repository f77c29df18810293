"""Keep optimizer state and take optimizer steps on the host, where the GPU has no room for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from largebatch._errors import UserError
from largebatch.distributed.sharding import is_sharded
from largebatch.optim.layerwise import LayerwiseOptimizer
from largebatch.optim.loss_scaling import ScaledStep
from largebatch.optim.sgd import SGD
from largebatch.optim.wrapper import Wrapper

PART_BYTES = 64 * 2**20


class Offload(ScaledStep, Wrapper):
    """Wraps an optimizer: its state is kept and its steps are taken on the host (CPU).

    Gradients travel to pinned host memory, our CPU kernels step a copy of the parameters there, and
    the new parameters travel back (Ren et al. 2021, "ZeRO-Offload", section 4). Parameters go in
    parts of about 64 MB: one is stepped while the next part's gradients arrive and the last part's
    parameters leave. The device then holds parameters and gradients alone::

        optimizer = Offload(LAMB(param_groups(model, 0.01), lr=0.01))

    Steps have the same bits as the wrapped optimizer's own steps on a CPU. ``state_dict`` is that
    of the wrapped optimizer, so a run can resume with or without offloading. A change of parameters
    from outside is noticed, except one that autograd does not see (``param.data``).

    Args:
        optimizer: SGD, SGDW, LARS or LAMB of this package, before its first step. Groups and state
            are shared with the wrapper.
        part_bytes: bytes of parameters that travel and are stepped together.

    Raises:
        UserError: another optimizer, one that has stepped, or sharded parameters.
    """

    optimizer: SGD | LayerwiseOptimizer
    carried = (*ScaledStep.carried, *Wrapper.carried, "_part_bytes")

    def __init__(self, optimizer: torch.optim.Optimizer, part_bytes: int = PART_BYTES) -> None:
        name = type(optimizer).__name__
        if not isinstance(optimizer, (SGD, LayerwiseOptimizer)):
            raise UserError(f"Offload: {name}; it takes SGD, SGDW, LARS or LAMB")
        if optimizer.state:
            raise UserError(f"Offload: {name} has state: wrap it before its first step")
        if getattr(optimizer, "fragments", None):
            raise UserError(f"Offload: {name}.shard was called: sharded parameters stay")
        super().__init__(optimizer)
        self._part_bytes = part_bytes
        self.unscales = optimizer.unscales
        self._parts: list[_Part] = []
        for group in optimizer.param_groups:
            self._divide(group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._remake()

    def _remake(self) -> None:
        """Make the copies on the host anew, from parameters and state as they are."""
        states = {**self.state}
        self._parts = []
        for group in self.param_groups:
            self._divide(group)
        for part in self._parts:
            part.load([states.get(param, {}) for param in part.params])
        self._share_parts()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the wrapped optimizer."""
        super().add_param_group(param_group)
        if hasattr(self, "_parts"):
            self._divide(self.param_groups[-1])

    def _divide(self, group: dict[str, Any]) -> None:
        """Make parts of a group's parameters, and let its state be theirs."""
        part: list[Tensor] = []
        for param in group["params"]:
            if is_sharded(param):
                raise UserError("Offload: sharded parameters (DTensor); FSDP offloads by itself")
            full = sum(each.nbytes for each in part) >= self._part_bytes
            if part and (full or param.device != part[0].device):
                self._parts.append(_Part(type(self.optimizer), group, part))
                part = []
            part.append(param)
        if part:
            self._parts.append(_Part(type(self.optimizer), group, part))
        self._share_parts()

    def _share_parts(self) -> None:
        for part in self._parts:
            for param, host in zip(part.params, part.hosts, strict=True):
                self.state[param] = part.optimizer.state[host]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the wrapped optimizer."""
        state = super().state_dict()
        return {**state, "state": {key: each for key, each in state["state"].items() if each}}

    def load_inner(self, state_dict: dict[str, Any]) -> None:
        """Load state of the wrapped optimizer's form into host memory, bit by bit.

        Raises:
            ValueError: ``state_dict`` has other groups.
        """
        saved = state_dict["param_groups"]
        if [len(group["params"]) for group in saved] != [
            len(group["params"]) for group in self.param_groups
        ]:
            raise ValueError("Offload: the state is of other parameter groups")
        state_dict = self.optimizer.adopted(state_dict)
        number_of = {}
        for group, old in zip(self.param_groups, state_dict["param_groups"], strict=True):
            number_of.update(dict(zip(group["params"], old["params"], strict=True)))
            group.update({key: value for key, value in old.items() if key != "params"})
        for part in self._parts:
            part.load([state_dict["state"].get(number_of[param], {}) for param in part.params])
        self._share_parts()

    def prepare(self, factor: Tensor | None) -> Tensor | None:
        """Return the factor of this step's gradients, as the wrapped optimizer computes it."""
        return self.optimizer.prepare(factor)

    def take(self, factor: Tensor | None, found_inf: Tensor | None) -> None:
        """Take a step along ``factor`` x gradient; none where ``found_inf`` is not 0."""
        if any(part.retyped() for part in self._parts):
            self._remake()
        for part in self._parts:
            part.fetch()
        factor = None if factor is None else factor.cpu()
        found_inf = None if found_inf is None else found_inf.cpu()
        for part in self._parts:
            part.step(factor, found_inf)
        for part in self._parts:
            part.wait()

    # What a run writes of an optimizer with a rate a layer.

    def layer_norms(self) -> Iterator[tuple[Tensor, int, Tensor]]:
        """Yield the norms of the last step, as :meth:`LayerwiseOptimizer.layer_norms` does."""
        for part in self._parts:
            if isinstance(part.optimizer, LayerwiseOptimizer):
                params = dict(zip(part.hosts, part.params, strict=True))
                for host, number, norms in part.optimizer.layer_norms():
                    yield params[host], number, norms

    def excluded(self, groups: Sequence[Sequence[Tensor]] | None = None) -> list[Tensor]:
        """Return the parameters without a trust ratio, of ``groups`` as LARS and LAMB have it."""
        wrapped = self.optimizer
        return wrapped.excluded(groups) if isinstance(wrapped, LayerwiseOptimizer) else []


def layer_rates(optimizer: torch.optim.Optimizer) -> LayerwiseOptimizer | Offload | None:
    """Return ``optimizer`` if it is layer-wise (LARS or LAMB, offloaded or not), else None."""
    if isinstance(optimizer, LayerwiseOptimizer):
        return optimizer
    if isinstance(optimizer, Offload) and isinstance(optimizer.optimizer, LayerwiseOptimizer):
        return optimizer
    return None


class _Part:
    """Parameters of one group and device that travel together, and the optimizer of their copies.

    Args:
        kind: class of the optimizer.
        group: theirs; what its settings are at a step counts for the step.
    """

    def __init__(
        self, kind: type[SGD | LayerwiseOptimizer], group: dict[str, Any], params: list[Tensor]
    ) -> None:
        self.group, self.params = group, params
        self._pinned = params[0].is_cuda
        self.hosts = [self._host(param.detach()).copy_(param.detach()) for param in params]
        self._versions = [param._version for param in params]
        self._grads: list[Tensor | None] = [None] * len(params)
        settings = {key: value for key, value in group.items() if key != "param_names"}
        self.optimizer = kind([{**settings, "params": self.hosts}], lr=0.0)  # type: ignore[call-arg]
        self._stream = torch.cuda.Stream(params[0].device) if self._pinned else None

    def _host(self, tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, device="cpu", pin_memory=self._pinned)

    def retyped(self) -> bool:
        """Whether a parameter has changed its type since its copy was made."""
        return any(p.dtype != host.dtype for p, host in zip(self.params, self.hosts, strict=True))

    def fetch(self) -> None:
        """Send for the gradients, and for parameters that someone else has changed."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            for index, (param, host) in enumerate(zip(self.params, self.hosts, strict=True)):
                if param.grad is None:
                    host.grad = None
                    continue
                if param.grad.layout != torch.strided:
                    host.grad = param.grad.cpu()  # the step refuses it in its own words
                    continue
                grad = self._grads[index]
                if grad is None:
                    grad = self._grads[index] = self._host(param.grad)
                host.grad = grad.copy_(param.grad, non_blocking=True)
                if param._version != self._versions[index]:
                    host.copy_(param.detach(), non_blocking=True)

    def step(self, factor: Tensor | None, found_inf: Tensor | None) -> None:
        """Step the copies once their gradients are here, and send them back."""
        if self._stream is not None:
            self._stream.synchronize()
        mine = self.optimizer.param_groups[0]
        mine.update({key: value for key, value in self.group.items() if key != "params"})
        self.optimizer.take(factor, found_inf)
        # What the step itself keeps in its group, such as the last rate.
        self.group.update({key: value for key, value in mine.items() if key != "params"})
        with torch.cuda.stream(self._stream):
            for index, (param, host) in enumerate(zip(self.params, self.hosts, strict=True)):
                if host.grad is not None:
                    param.copy_(host, non_blocking=True)
                    self._versions[index] = param._version

    def wait(self) -> None:
        """Let the device's later work see the new parameters."""
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)

    def load(self, states: list[dict[str, Any]]) -> None:
        """Load each parameter's state, and the group's settings."""
        own = self.optimizer.state_dict()
        settings = {key: value for key, value in self.group.items() if key != "params"}
        groups = [{**settings, "params": own["param_groups"][0]["params"]}]
        known = {number: state for number, state in enumerate(states) if state}
        self.optimizer.load_state_dict({"state": known, "param_groups": groups})
