"""An all-reduce that takes, for each message, the algorithm that is faster for its size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store

from largebatch.distributed.algorithms import Algorithms
from largebatch.distributed.cost_model import Choice
from largebatch.distributed.preference import Preference
from largebatch.distributed.selection import Selection, select
from largebatch.distributed.topology import Topology

STARTS: Mapping[str, Callable[..., dist.Work]] = {
    "flat": Algorithms.start_flat,
    "torus": Algorithms.start_torus,
}
"""The all-reduces by name, each called as :meth:`Algorithms.start_torus` is."""


class AllReduce(Algorithms):
    """Sums and means over the ranks of one group; constructing it may measure for a few seconds.

    Args: as of :class:`Algorithms`.
    """

    def __init__(
        self,
        store: Store,
        flat: dist.ProcessGroup,
        timeout: timedelta,
        device: torch.device,
        preference: Preference,
        topology: Topology | None = None,
    ) -> None:
        super().__init__(store, flat, timeout, device, preference, topology)
        self.selection: Selection = select(self)
        self._choices: dict[int, Choice] = {}  # by bytes: the buckets are the same every step

    def start(
        self, tensor: Tensor, *, mean: bool = False, squares: Tensor | None = None
    ) -> dist.Work:
        """Begin to reduce ``tensor`` in place; arguments as for :meth:`Algorithms.start_torus`."""
        choice = self._choices.get(tensor.nbytes)
        if choice is None:
            choice = self._choices[tensor.nbytes] = self.selection.choose(tensor.nbytes)
        begin = STARTS[choice.algorithm]
        return begin(self, tensor, choice.chunks, mean=mean, squares=squares)
