"""All-reduce algorithms over one group: the flat ring of its back end, and the 2D torus."""

from __future__ import annotations

import atexit
import os
import weakref
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store

from largebatch.distributed.contiguous import stretch
from largebatch.distributed.pending import Pending
from largebatch.distributed.preference import WIRE_DTYPES, Preference
from largebatch.distributed.statistics import record
from largebatch.distributed.topology import Topology
from largebatch.distributed.torus_face import TorusFace, make_torus
from largebatch.processes.connect import connect
from largebatch.processes.ending import let_gloo_rest

# Added as they are; the other unsigned types are added as the signed ones, which have their bits.
WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
AS_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


class Algorithms:
    """Sums and means over the ranks of one group by a named algorithm, on one kind of device.

    Args:
        store: the group's store, under its own prefix.
        flat: the group itself, whose own all-reduce is the flat ring.
        timeout: timeout of every step.
        device: device of the tensors.
        preference: what the user asks for.
        topology: the topology if known; None: it is discovered.
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
        self.rank, self.world_size, self.flat = flat.rank(), flat.size(), flat
        self.device, self.preference = device, preference
        self.store = store = PrefixStore(f"all-reduce/{device.type}", store)
        found = Topology.discover(store, self.rank, self.world_size, preference.grid)
        self.topology = topology or found
        self.wire = WIRE_DTYPES[preference.wire]
        rows, columns = self.topology.rows, self.topology.columns
        narrow = self.wire != torch.float32
        # With one row there is no slow axis; with one column the torus is a ring's worth of bytes.
        grid = rows > 1 and (columns > 1 or narrow)
        if device.type == "cuda" and flat._get_backend(device).name() != "nccl":
            grid = False  # gloo's messages between two ranks take CPU tensors alone
        self.torus: TorusFace | None = None
        self.row: dist.ProcessGroup | None = None
        self.column: dist.ProcessGroup | None = None
        if grid and preference.admits_torus:
            place = self.topology.place(self.rank)
            row_store = PrefixStore(f"row {place.row[0]}", store)
            self.row = connect(row_store, place.position, len(place.row), timeout, device)
            if place.column:
                at = place.column.index(self.rank)
                column_store = PrefixStore(f"column {place.column[0]}", store)
                self.column = connect(column_store, at, rows, timeout, device)
            self.torus = make_torus(self.topology, self.rank, self.row, self.column, device)
            _open.add(self.torus)
        self._ending: set[Pending] = set()
        self.close = weakref.finalize(self, _close, self.torus, self._ending, os.getpid())
        _made.add(self)

    def start_torus(
        self, tensor: Tensor, chunks: int, *, mean: bool = False, squares: Tensor | None = None
    ) -> dist.Work:
        """Begin to reduce ``tensor`` in place by the torus; all ranks must call in the same order.

        Args:
            tensor: any type and size, also empty or not contiguous.
            chunks: number of chunks; one is on the columns while the next is on the rows.
            mean: divide by the number of ranks; integers are rounded towards zero.
            squares: two float64 numbers on the tensor's device, for real types only. This rank's
                parts are added to them. Summed over all ranks they are the sum of the ranks'
                squared norms before the reduction, and the squared norm of the result.

        Raises:
            ValueError: the type has no sum, or no mean.
        """
        numbers = _numbers(tensor, mean)
        flat = stretch(numbers).view(-1)
        assert self.torus is not None
        wire = self.wire if flat.dtype == torch.float32 else flat.dtype
        return self.torus.all_reduce(
            flat,
            chunks=chunks,
            wire=wire,
            divisor=self.world_size if mean else 1,
            squares=squares,
            target=None if flat.data_ptr() == numbers.data_ptr() else numbers,
        )

    def start_flat(
        self, tensor: Tensor, chunks: int = 1, *, mean: bool = False, squares: Tensor | None = None
    ) -> dist.Work:
        """Begin to reduce by the group's own all-reduce, in one piece; see :meth:`start_torus`."""
        ring = 2 * (self.world_size - 1)
        record("flat", calls=1, steps=ring, bytes=ring * tensor.nbytes // self.world_size)
        if squares is not None:
            squares[0] += tensor.detach().double().square().sum()
        whole = stretch(tensor)
        work = self.flat.allreduce([whole])
        if not mean and squares is None and whole is tensor:
            return work
        # gloo has no mean of its own, and takes memory for contiguous whatever it is.
        pending = Pending([tensor])
        # Not self: a thread of gloo must not be the last to hold the group that joins it.
        rank, world_size, ending = self.rank, self.world_size, self._ending
        ending.add(pending)

        def end(done: torch.futures.Future[Any]) -> None:
            try:
                done.value()
                if mean and whole.is_floating_point():
                    whole.div_(world_size)
                elif mean:
                    whole.copy_(torch.div(whole, world_size, rounding_mode="trunc"))
                if whole is not tensor:
                    tensor.copy_(whole)
                if squares is not None and rank == 0:
                    squares[1] += tensor.detach().double().square().sum()
                pending.succeed()
            except Exception as error:  # the one who waits is to see it
                pending.fail(error)
            ending.discard(pending)

        work.get_future().then(end)
        return pending


def _close(torus: TorusFace | None, ending: set[Pending], process: int) -> None:
    """Wait until what has begun is done, and end the torus' threads; a forked child has neither."""
    for pending in tuple(ending) if os.getpid() == process else ():
        pending.settle()
    if torus is not None and torus.close():
        _open.discard(torus)


_made: weakref.WeakSet[Algorithms] = weakref.WeakSet()
# Schedules whose threads have not ended. A callback on one of the threads may drop the last owner
# and cannot end them; the interpreter, which they must not outlive, then ends them from here.
_open: set[TorusFace] = set()


@atexit.register
def _close_all() -> None:
    """Close what is left: no thread may call Python after the interpreter's end.

    A callback that still had to would end the process in an abort.
    """
    for made in list(_made):
        made.close()
    for torus in list(_open):
        torus.close()
    let_gloo_rest()


def _numbers(tensor: Tensor, mean: bool) -> Tensor:
    """View ``tensor`` as one of a type whose elements can be added."""
    view = tensor.detach()
    if view.is_complex():
        view = torch.view_as_real(view)
    if view.dtype in AS_SIGNED and not mean:
        return view.view(AS_SIGNED[view.dtype])
    if view.dtype in (*WHOLE, *FLOATING) or (view.dtype == torch.bool and not mean):
        return view
    what = "mean" if mean else "sum"
    raise ValueError(f"all-reduce: no {what} of {tensor.dtype} tensors over the torus")
