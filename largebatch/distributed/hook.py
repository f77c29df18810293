"""The torus for programs with another back end: a function, and a hook for torch's DDP."""

import weakref
from typing import Any, get_args

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import GradBucket

from largebatch._errors import UserError
from largebatch.distributed.all_reduce import AllReduce
from largebatch.distributed.backend import all_reduce_over, process_group
from largebatch.distributed.cost_model import Wire
from largebatch.distributed.preference import WIRE_DTYPES, Preference, Wanted
from largebatch.distributed.topology import Topology

# torch reads the hook's annotations at run time, so this file leaves them unquoted.

# By group, which they do not keep, and by the kind of device.
_functions: weakref.WeakKeyDictionary[dist.ProcessGroup, dict[str, AllReduce]] = (
    weakref.WeakKeyDictionary()
)


class TorusHook:
    """A communication hook that averages gradients over ranks; :func:`torus_hook` makes it."""

    def __init__(
        self,
        topology: Topology | None,
        preference: Preference,
        group: dist.ProcessGroup | None,
        mean: bool,
        norms: bool,
    ) -> None:
        self.__name__ = self.__qualname__ = "torus_hook"  # which torch asks of every hook
        self._topology, self._preference, self._mean = topology, preference, mean
        self._group = group
        self._reduce: AllReduce | None = None
        self._made_for: Any = None  # a weak reference to the group of `_reduce`
        self._squares: Tensor | None = None
        self._norms = norms

    def __call__(self, state: object, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        """Begin to reduce a bucket; the future's value is its buffer."""
        buffer = bucket.buffer()
        group = process_group(self._group)
        if self._reduce is None or self._made_for() is not group:
            self._made_for = weakref.ref(group)
            self._reduce = all_reduce_over(
                "hook", self._group, buffer.device, self._preference, self._topology
            )
        if self._norms and self._squares is None:
            self._squares = torch.zeros(2, dtype=torch.float64, device=buffer.device)
        work = self._reduce.start(buffer, mean=self._mean, squares=self._squares)
        return work.get_future().then(lambda done: done.value()[0])

    def squared_norms(self) -> tuple[float, float]:
        """Return the gradient's squared norms since the last call; every rank must call this.

        The first number is the sum over ranks of |gradient|^2 before the reduction, the second is
        |gradient|^2 after the reduction. If the torus reduced, they cost no extra pass over memory.
        After several steps the numbers are sums over these steps.
        """
        if self._reduce is None or self._squares is None:
            return 0.0, 0.0
        total = self._squares.clone()
        self._reduce.flat.allreduce([total]).wait()
        self._squares.zero_()
        before, after = total.tolist()
        return before, after


def torus_hook(
    topology: Topology | None = None,
    *,
    wire_dtype: torch.dtype | Wire = "fp32",
    algorithm: str = "torus",
    group: dist.ProcessGroup | None = None,
    mean: bool = True,
    norms: bool = True,
) -> TorusHook:
    """Return a hook: ``model.register_comm_hook(None, torus_hook())``.

    Args:
        topology: the grid; by default from LARGEBATCH_TORUS, else from the hosts.
        wire_dtype: number format of float32 gradients between hosts: ``fp32``, ``bf16`` or
            ``fp16``, or torch's dtypes.
        algorithm: ``torus``, or ``auto`` to measure at the first bucket and decide by size.
        group: the ranks; the default group by default.
        mean: True: average, as DDP does; False: sum.
        norms: whether :meth:`TorusHook.squared_norms` is wanted.

    Raises:
        UserError: an unknown ``wire_dtype`` or ``algorithm``.
    """
    names = {dtype: name for name, dtype in WIRE_DTYPES.items()}
    wire = names.get(wire_dtype) if isinstance(wire_dtype, torch.dtype) else wire_dtype
    if wire not in get_args(Wire):
        raise UserError(f"wire_dtype {wire_dtype!r}: choose from {', '.join(get_args(Wire))}")
    if algorithm not in get_args(Wanted):
        raise UserError(f"algorithm {algorithm!r}: choose from {', '.join(get_args(Wanted))}")
    grid = Preference.from_environment().grid if topology is None else None
    return TorusHook(topology, Preference(algorithm, grid, wire), group, mean, norms)  # type: ignore[arg-type]


def torus_all_reduce(
    tensor: Tensor,
    op: Any = dist.ReduceOp.SUM,
    group: dist.ProcessGroup | None = None,
    async_op: bool = False,
) -> dist.Work | None:
    """Reduce ``tensor`` in place over the torus, as ``dist.all_reduce`` does over its own ring.

    The environment variables LARGEBATCH_ALLREDUCE, LARGEBATCH_TORUS and LARGEBATCH_WIRE set the
    algorithm, the grid and the number format between hosts. Ranks of one host, or one rank a host
    without a narrow number format, have no torus and take the flat ring. The first call for a group
    and a device connects, which takes a moment.

    Raises:
        ValueError: an operation other than SUM and AVG, or a type that does not support the
            operation.
    """
    mean = op == dist.ReduceOp.AVG
    if not (mean or op == dist.ReduceOp.SUM):
        raise ValueError(f"torus_all_reduce: {op} is not SUM or AVG")
    made = _functions.setdefault(process_group(group), {})
    kind = tensor.device.type
    if kind not in made:
        preference = Preference.from_environment(default="torus")
        made[kind] = all_reduce_over("function", group, tensor.device, preference)
    work = made[kind].start(tensor, mean=mean)
    if async_op:
        return work
    work.wait()
    return None
