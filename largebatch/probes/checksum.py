"""Check that all ranks still hold the same parameters, to the bit."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from largebatch._errors import RunFailure
from largebatch.probes.instrument import Instrument, Moment
from largebatch.processes import World
from largebatch.processes.agreement import gathered
from largebatch.schedule import Every

_WORD = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_FACTOR = 0x100000001B3  # of the FNV-1a hash: earlier parameters count otherwise than later ones


class ParameterChecksum(Instrument):
    """Ends the run if a rank's parameters differ from the other ranks' parameters."""

    name = "checksum"

    def __init__(self, model: nn.Module, world: World, every: Every) -> None:
        self._model, self._world = model, world
        self.every = every

    def begin(self, samples: int, steps: int) -> None:
        """Compare the parameters at the begin of a session."""
        require_same_parameters(self._model.parameters(), self._world, steps)

    def measure(self, at: Moment) -> Mapping[str, Tensor]:
        """Compare the parameters; returns no figure.

        Raises:
            RunFailure: raised on every rank; the message names the rank that differs.
        """
        require_same_parameters(self._model.parameters(), self._world, at.number)
        return {}


def parameter_checksum(parameters: Iterable[Tensor]) -> Tensor:
    """Return an int64 hash of the parameters' bits: words are summed per parameter, sums hashed."""
    total: Any = 0
    for parameter in parameters:
        words = parameter.detach().view(_WORD[parameter.element_size()])
        total = total * _FACTOR + words.sum(dtype=torch.int64)
    return torch.as_tensor(total, dtype=torch.int64)


def require_same_parameters(parameters: Iterable[Tensor], world: World, steps: int) -> None:
    """Compare the parameters over the ranks; sharded parameters (DTensor) are left out.

    Args:
        steps: steps taken so far, for the message.

    Raises:
        RunFailure: raised on every rank; the message names a rank that differs from most.
    """
    if world.world_size == 1:
        return
    whole = [p for p in parameters if not hasattr(p, "to_local")]
    mine = parameter_checksum(whole).view(1)
    if whole:
        mine = mine.to(whole[0].device)
    everyone = [torch.empty_like(mine) for _ in range(world.world_size)]
    dist.all_gather(everyone, mine)
    sums = torch.cat(everyone).tolist()
    usual = Counter(sums).most_common(1)[0][0]
    odd = [rank for rank, found in enumerate(sums) if found != usual]
    if odd:
        hosts = gathered(socket.gethostname(), world)
        raise RunFailure(
            f"after {steps} steps rank {odd[0]} on {hosts[odd[0]]} holds other parameters than "
            f"{sums.count(usual)} of {world.world_size} ranks: its memory, its library versions or "
            "its hardware differ; the last checkpoint stands"
        )
