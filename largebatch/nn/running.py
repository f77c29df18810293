"""Running statistics that depend on the step, not on its division into ranks and micro-batches.

Every supported update is affine in the ghosts' statistics. With ``T`` ghosts in a step,

    running <- decay * running + sum_i weight_i * statistic_i,   decay + sum_i weight_i = 1,

so ranks and micro-batches can add up their own terms in any grouping. A rank keeps

- ``running_mean``, ``running_var``: torch's buffers. They hold the values of the last merge,
  decayed, plus this rank's own terms. On one process this is always the true value;
- ``local``: its own terms since the last merge, decayed alike;
- ``pending``: its terms of the present step.

A merge sums ``local`` over the ranks and adds the others' part. Nothing is communicated between
merges. If k ranks hold a ghost together, all of them record the ghost and a merge counts 1/k of
each.

| running    | decay      | weight of ghost i = 0 .. T-1  | source |
|------------|------------|-------------------------------|--------|
| sequential | (1-m)^T    | m (1-m)^(T-1-i)               | Hoffer et al. 2017, reference code |
| averaged   | 1-m        | m / T                         | init2winit's VirtualBatchNorm |
| last       | 0          | 1 / T                         | Akiba et al. 2017 |
| m = None   | n / (n+T)  | 1 / (n+T), n ghosts before    | torch's cumulative average |

The statistics of a ghost are its mean and its unbiased variance, from its own count. ``averaged``
leaves out the variance between the ghosts' means. Under shuffling the mean of unbiased variances is
unbiased without that term, and with it the update would not be affine.
"""

from __future__ import annotations

from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from largebatch.nn.config import Running
from largebatch.nn.place import Place, current_place


class RunningStatistics(_BatchNorm):
    """Base of the norms over samples: torch's parameters and buffers, updated ghost by ghost.

    A subclass normalises and calls ``record(mean, variance)`` with one row per ghost.
    ``num_batches_tracked`` counts ghosts.
    """

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None
    pending: Tensor | None
    local: Tensor | None
    activation: Literal["relu"] | None
    converted_from: type[_BatchNorm] | None = None
    followers: tuple[str, ...] = ()
    """Names of children that are called on the result (``largebatch.nn.followers``)."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        running: Running = "sequential",
        activation: Literal["relu"] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
    ) -> None:
        if running not in get_args(Running):
            allowed = ", ".join(get_args(Running))
            raise ValueError(f"running={running!r}: choose from {allowed}")
        if activation not in (None, "relu"):
            raise ValueError(f"activation={activation!r}: choose from None, 'relu'")
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype
        )
        if not bias:
            self.register_parameter("bias", None)
        self.running = running
        self.activation = activation
        self.register_buffer("pending", None, persistent=False)
        self.register_buffer("local", None, persistent=False)
        self.forget_terms()

    @property
    def ranks_of_a_ghost(self) -> int:
        """The number of ranks that hold a ghost together and record the same statistics."""
        return 1

    def forget_terms(self) -> None:
        """Forget this rank's own terms: take the running buffers as the value on all ranks."""
        self._alone = False
        if self.running_mean is not None and "local" in self._buffers:
            with torch.inference_mode(False):  # they are added to outside of it
                self.pending = self.running_mean.new_zeros(2, self.num_features)
                self.local = self.running_mean.new_zeros(2, self.num_features)

    @property
    def records(self) -> bool:
        """Whether a forward in training would now change the running statistics."""
        counts = self.momentum is not None or self.num_batches_tracked is not None
        return self.track_running_stats and self.running_mean is not None and counts

    def reset_running_stats(self) -> None:
        if self.records:  # may be switched on later than the buffers were made
            super().reset_running_stats()
        self.forget_terms()

    def reset_parameters(self) -> None:
        self.reset_running_stats()
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:  # torch's own, before it had ``bias=``, takes it for granted
            nn.init.zeros_(self.bias)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.forget_terms()

    def decay(self, total: int) -> float | Tensor:
        """Return the factor of the old running statistics after a step of ``total`` ghosts."""
        if self.running == "last":
            return 0.0
        if self.momentum is None:
            before = self._ghosts_before()
            return before / (before + total)
        return (1.0 - self.momentum) ** (total if self.running == "sequential" else 1)

    def _weights(self, count: int, place: Place) -> float | Tensor:
        """Return the weight of each of ``count`` ghosts at ``place``: one number or (count, 1)."""
        if self.running == "last":
            return 1.0 / place.total
        if self.momentum is None:
            return 1.0 / (self._ghosts_before() + place.total)
        if self.running == "averaged":
            return self.momentum / place.total
        keep, after = 1.0 - self.momentum, place.total - place.first - count
        if count == 1:
            return float(self.momentum * keep**after)
        assert self.running_mean is not None
        later = torch.arange(
            after + count - 1, after - 1, -1,
            device=self.running_mean.device, dtype=self.running_mean.dtype,
        )  # fmt: skip
        return self.momentum * torch.pow(keep, later).unsqueeze(1)

    def _ghosts_before(self) -> Tensor:
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        return self.num_batches_tracked.to(self.running_mean.dtype)

    @torch.no_grad()
    def record(self, mean: Tensor, variance: Tensor) -> None:
        """Record the statistics of a forward's ghosts, (ghosts, channels) each.

        Inside ``ghost_place`` the statistics wait for ``step_end``. Outside, this forward counts as
        the whole step.
        """
        if not self.records or _recomputing():
            return
        assert self.running_mean is not None and self.running_var is not None
        count, place = mean.shape[0], current_place()
        statistics = torch.stack((mean, variance)).to(self.running_mean.dtype)
        terms = (statistics * self._weights(count, place or Place(0, count))).sum(1)
        if place is not None:
            assert self.pending is not None
            self.pending.add_(terms)
            return
        self._alone = True
        decay = self.decay(count)
        # Not a plain product: in `last` the old statistics must vanish even if they are not finite.
        for buffer, term in zip((self.running_mean, self.running_var), terms, strict=True):
            buffer.copy_(term if self.running == "last" else buffer * decay + term)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(count)


def _recomputing() -> bool:
    # Activation checkpointing runs the forward again inside backward; those ghosts are counted.
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


_norms_of: WeakKeyDictionary[nn.Module, list[RunningStatistics]] = WeakKeyDictionary()
_averaging_of: WeakKeyDictionary[nn.Module, list[_BatchNorm]] = WeakKeyDictionary()


def running_norms(model: nn.Module) -> list[RunningStatistics]:
    """Return the norms of ``model`` with running statistics of this package; the list is cached."""
    if model not in _norms_of:
        _norms_of[model] = [m for m in model.modules() if isinstance(m, RunningStatistics)]
    return [norm for norm in _norms_of[model] if norm.records]


def forget_norms() -> None:
    """Clear the cache of ``running_norms``, after modules of a model have been replaced."""
    _norms_of.clear()
    _averaging_of.clear()


def keep_running(model: nn.Module, kept: float, ghosts: int, passes: int) -> None:
    """Set momenta so that the coming step keeps a given share of the running statistics.

    Args:
        kept: share to keep, 2^(-samples of the step / half-life).
        ghosts: number of ghosts in the step, over all ranks.
        passes: number of this rank's forward passes in the step; torch's own batch norms update in
            each.
    """
    if model not in _averaging_of:
        _averaging_of[model] = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    for norm in _averaging_of[model]:
        times = max(passes, 1)
        if isinstance(norm, RunningStatistics):
            times = ghosts if norm.running == "sequential" else 1
        momentum = 1.0 - kept ** (1.0 / times)
        if norm.momentum != momentum:  # a compiled model is compiled again for each value
            norm.momentum = momentum


@torch.no_grad()
def step_end(model: nn.Module, total: int) -> None:
    """Close a step of ``total`` ghosts over all ranks and micro-batches.

    Every rank must call this once per optimizer step whose forwards ran in ``ghost_place``, even a
    rank without samples. On one process the running statistics are right afterwards; several ranks
    must merge them (``merge_running_stats``).
    """
    groups: dict[float | int, tuple[float | Tensor, list[RunningStatistics]]] = {}
    for norm in running_norms(model):
        decay = norm.decay(total)
        key = decay if isinstance(decay, float) else id(norm)
        groups.setdefault(key, (decay, []))[1].append(norm)
    for decay, norms in groups.values():
        running = [t for n in norms for t in (n.running_mean, n.running_var) if t is not None]
        local = [n.local for n in norms if n.local is not None]
        pending = [n.pending for n in norms if n.pending is not None]
        if isinstance(decay, float) and decay == 0.0:
            torch._foreach_zero_(running + local)
        else:
            torch._foreach_mul_(running + local, decay)
        torch._foreach_add_(running, [term for terms in pending for term in terms.unbind()])
        torch._foreach_add_(local, pending)
        torch._foreach_zero_(pending)
        counts = [n.num_batches_tracked for n in norms if n.num_batches_tracked is not None]
        torch._foreach_add_(counts, total)


@torch.no_grad()
def discard_step(model: nn.Module) -> None:
    """Drop the terms of a step that will not be closed (its micro-batches are tried again)."""
    for norm in running_norms(model):
        if norm.pending is not None:
            norm.pending.zero_()
