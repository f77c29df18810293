"""Fully sharded data parallelism: each rank holds a part of every parameter (torch's FSDP2).

Rajbhandari et al. 2020, "ZeRO", stage 3; Zhao et al. 2023, "PyTorch FSDP". A block's parameters are
gathered for its forward pass and again for its backward pass. Its gradients are summed into the
sharded parts. With ``shard_ranks`` below the number of ranks, each group of ``shard_ranks`` ranks
holds a copy of the model (hybrid sharding). This takes more memory but sends fewer messages between
hosts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from largebatch._errors import UserError
from largebatch.engine.engine import Engine, broadcast_from_first
from largebatch.optim.squares import Squares
from largebatch.processes.environment import World


class FullySharded(Engine):
    """Parameters, gradients and optimizer state divided among the ranks, as DTensors.

    Ranks exchange messages in every pass, so all make the same number (:attr:`lockstep`).

    Args:
        shard_ranks: number of ranks that share one copy of the model; None: all.

    Raises:
        UserError: ``shard_ranks`` does not divide the number of ranks.
    """

    name = "fsdp"
    lockstep = True
    apart = ("first",)

    def __init__(self, model: nn.Module, world: World, shard_ranks: int | None = None) -> None:
        from torch.distributed.fsdp import FSDPModule, fully_shard

        super().__init__(model, world)
        size = world.world_size
        each = shard_ranks or size
        if size % each:
            raise UserError(
                f"distributed.shard_ranks={each}: {size} ranks do not divide into groups of it"
            )
        broadcast_from_first(model)
        for parameter in model.parameters():  # FSDP2 takes no channels_last weights
            parameter.data = parameter.data.contiguous()
        device = next(model.parameters()).device
        if each == size:
            mesh = init_device_mesh(device.type, (size,), mesh_dim_names=("shard",))
        else:
            shape = (size // each, each)
            mesh = init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard"))
        whole = _places(model)
        for block in _blocks(model):
            if any(whole[parameter] > count for parameter, count in _places(block).items()):
                continue  # tied to one outside: both belong to one group, the root's
            fully_shard(block, mesh=mesh, reshard_after_forward=True)
        fully_shard(model, mesh=mesh, reshard_after_forward=False)
        # Sums, exactly: FSDP2 would divide by the number of ranks.
        self._sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
        for module in self._sharded:
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
        self._root = self._sharded[0]
        self._copies = size // each

    def watch_squares(self) -> Squares:
        """Return the squared norms of gradients, of each rank's first pass and of the sum."""
        if self.squares is None:
            groups = [group["params"] for group in self.optimizer.param_groups]
            self._places_of = {module: list(_own(module)) for module in self._sharded}
            self.squares = Squares(groups, self._gradients, self._copies)
            self.squares.apart = "first"
        return self.squares

    def _gradients(self) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Walk the parameters with what this rank alone has added to their gradients so far.

        Such gradients belong to the gathered parameters, so one block after the other is gathered
        for it once more. The order of the sums stays, and with it every bit of the run.
        """
        for module, places in self._places_of.items():
            module.unshard()
            yield from ((param, getattr(owner, name).grad) for owner, name, param in places)
            module.reshard()

    def begin(self) -> None:
        """Clear the gradients; until :meth:`last` they are summed on each rank only."""
        for parameter in self.model.parameters():
            parameter.grad = None
        if self.squares is not None:
            self.squares.begin()
        self._root.set_requires_gradient_sync(False)

    def last(self, overlap: bool = True) -> None:
        """Let the coming backward pass sum each block's gradients over ranks when complete."""
        self._root.set_requires_gradient_sync(True)

    def finish(self) -> None:
        """Give unused parameters a gradient of zero, as the other engines do."""
        for parameter in self.model.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.squares is not None:
            self.squares.finish(self.squares.grads(), self.scale_now())

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Return a context with the whole model on every rank, so that passes need no messages."""
        for module in self._sharded:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        try:
            yield
        finally:
            for module in self._sharded:
                module.set_reshard_after_forward(module is not self._root, recurse=False)
                module.reshard()


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Walk what is gathered at once: the items of the outermost Sequential or ModuleList."""
    for child in module.children():
        if isinstance(module, (nn.Sequential, nn.ModuleList)):
            if any(True for _ in child.parameters()):
                yield child
        else:
            yield from _blocks(child)


def _own(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Walk the parameters that are gathered with ``module``: their owners, names and parts."""
    from torch.distributed.fsdp import FSDPModule

    seen: set[int] = set()
    waiting = [module]
    while waiting:
        owner = waiting.pop()
        waiting += [child for child in owner.children() if not isinstance(child, FSDPModule)]
        for name, parameter in owner.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield owner, name, parameter


def _places(module: nn.Module) -> Counter[nn.Parameter]:
    """Count the names that each parameter has: several where weights are tied."""
    return Counter(p for _, p in module.named_parameters(remove_duplicate=False))
