"""Save and restore the memory of streams (such as recurrent state) on any number of ranks.

Each step takes one window of each stream in order, so a rank reads the same streams in every step.
Another number of ranks divides the streams differently. So checkpoints hold the memory of all
streams.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from largebatch._errors import UserError
from largebatch.processes import World
from largebatch.processes.agreement import gathered
from largebatch.tasks import Carry
from largebatch.train.feed import Feed


class StreamMemory:
    """The memory of a run's streams, over all ranks.

    Args:
        carry: this rank's memory.
        feed: tells which streams this rank reads.
    """

    def __init__(self, carry: Carry, feed: Feed, world: World, device: torch.device) -> None:
        self._carry, self._world, self._device = carry, world, device
        first = feed.plan.step_at(0)
        parts = feed.parts_of(first, world.rank)
        self._own = [stream for part in parts for stream in range(part.start, part.stop)]

    def capture(self) -> dict[str, Any] | None:
        """Return the memory of all streams: numbers and one row each; None without memory.

        Every rank must call this.
        """
        known = self._carry.rows()
        own = {stream: known[stream] for stream in self._own if stream in known}
        row = next(iter(own.values()), None)
        told = None if row is None else [list(row.shape), str(row.dtype).removeprefix("torch.")]
        everyone: list[Any] = gathered({"streams": list(own), "row": told}, self._world)
        streams = [stream for rank in everyone for stream in rank["streams"]]
        if not streams:
            return None
        shape, dtype = next(rank["row"] for rank in everyone if rank["row"] is not None)
        rows = torch.zeros(len(streams), *shape, dtype=getattr(torch, dtype), device=self._device)
        for place, stream in enumerate(streams):
            if stream in own:
                rows[place] = own[stream]
        if self._world.world_size > 1:
            dist.all_reduce(rows)  # exact: a row is zero on all ranks but one
        return {"streams": streams, "rows": rows}

    def restore(self, state: Any) -> None:
        """Restore a result of :meth:`capture`, on any number of ranks.

        Raises:
            UserError: the state has another form.
        """
        if state is None:
            return
        rows, streams = (state.get(name) for name in ("rows", "streams"))
        if (
            not isinstance(rows, Tensor)
            or not isinstance(streams, list)
            or len(rows) != len(streams)
        ):
            raise UserError("the checkpoint does not fit this run: carry: no memory of streams")
        placed = rows.to(self._device)
        self._carry.load(dict(zip(streams, placed, strict=True)))
