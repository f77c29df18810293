"""The base of batch norms over ghost batches, whatever norm measures the spread."""

# No annotations as strings here: torch.jit reads those of what it compiles.

from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from largebatch._ops import NormPolicy, ghost_norm, norm_constant
from largebatch.nn.config import NormConfig, Running
from largebatch.nn.followers import follow
from largebatch.nn.frozen import frozen
from largebatch.nn.ghost_gradients import Observer, observed_ghost_norm
from largebatch.nn.ghosts import split_ghosts
from largebatch.nn.leaf import Proxy, recorded
from largebatch.nn.over_ranks import Ranks, all_ranks, norm_over_ranks, ranks_of
from largebatch.nn.place import current_place, ghost_place
from largebatch.nn.running import RunningStatistics


class OverGhosts(RunningStatistics):
    """Base of the norms that normalise each ghost batch by its own mean and spread.

    A subclass names the norm (L2, L1, L-infinity, top-k) by ``policy``. ``running_var`` holds
    squares of the estimated standard deviation (L2: the unbiased variance), so that ``state_dict``
    is that of torch's batch norm.

    Args:
        num_features: channels C of the (N, C, ...) input, which has 2 to 5 dimensions.
        ghost_size: samples in a ghost batch; None for all samples of a forward.
        eps: added to the variance (L2), or to the deviation (other norms).
        momentum: weight of the new running statistics, or None for their cumulative average.
        affine: learn a scale and a shift per channel.
        track_running_stats: keep running statistics for evaluation.
        running: how the ghosts of a step enter the running statistics (``largebatch.nn.running``).
        activation: ``"relu"`` to end in one, in the same pass over memory.
        process_group: ranks that hold a ghost together, ``"all"`` for all ranks. A forward on all
            these ranks is then one ghost, and ``ghost_size`` must be None. None: every ghost lies
            on one rank.
        bias: learn the shift, where ``affine``.

    Raises:
        ValueError: an argument is out of its range.
    """

    __constants__ = [*_BatchNorm.__constants__, "policy", "followers"]  # noqa: RUF012
    __jit_ignored_attributes__: ClassVar[list[str]] = [
        "ghost_size",
        "top",
        "ranks",
        "over_ranks",
        "followers",
        "gradient_observer",
    ]
    __jit_unused_properties__: ClassVar[list[str]] = ["ranks_of_a_ghost"]
    policy: ClassVar[NormPolicy] = NormPolicy.L2
    top: int = 1
    fusible: ClassVar[bool] = True
    """Whether residual and activation can be had in the pass that normalises."""
    ghost_size: int | None
    gradient_observer: Observer | None = None
    """Set it to be called in every backward with the gradients of weight and bias by each ghost,
    (2, ghosts, C); for training on one rank a ghost, not for second derivatives, and not of passes
    whose statistics are put back (``frozen_statistics``)."""

    def __init__(
        self,
        num_features: int,
        ghost_size: int | None = None,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        running: Running = "sequential",
        activation: Literal["relu"] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        process_group: "dist.ProcessGroup | Literal['all'] | None" = None,
        *,
        bias: bool = True,
    ) -> None:
        if ghost_size is not None and ghost_size < 1:
            raise ValueError(f"ghost_size={ghost_size}: must be at least 1 sample")
        if ghost_size is not None and process_group is not None:
            raise ValueError(f"ghost_size={ghost_size}: over ranks a forward is one ghost")
        super().__init__(
            num_features,
            eps,
            momentum,
            affine,
            track_running_stats,
            running,
            activation,
            device,
            dtype,
            bias=bias,
        )
        self.ghost_size = ghost_size
        self.over_ranks = process_group is not None
        self.ranks: Ranks | None = None
        if process_group is not None and not isinstance(process_group, str):
            self.ranks = ranks_of(process_group)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return the normalised ``x`` (N, C, ...), plus ``residual`` if given, then activated.

        In training, and without running statistics, the residual and the activation cost no extra
        pass over memory if ``residual`` has the shape and type of ``x``.

        Raises:
            ValueError: ``x`` has not 2 to 5 dimensions, not C channels or, in training, only one
                value per channel; or ``eps`` is not positive.
        """
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            if isinstance(x, Proxy):
                return recorded(self, x, residual)
            self._check_input_dim(x)
            if not self.eps > 0.0:
                raise ValueError(f"eps must be positive, but is {self.eps}")
            if self.training or self.running_mean is None:
                return self._by_batch(x, residual)
        return self._evaluate(x, residual)

    def _evaluate(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """Normalise by the running statistics. This is what torch.jit compiles of a norm."""
        mean, variance, eps = self.running_mean, self.running_var, self.eps
        if self.training or mean is None or variance is None:
            raise RuntimeError("torch.jit runs a norm of largebatch by its running statistics only")
        if self.policy != 0:  # not L2, in a word that torch.jit knows
            # 1 / (deviation + eps), as in training, by torch's own kernel.
            variance, eps = (variance.sqrt() + eps).square(), 0.0
        # Not F.batch_norm, which on torch 2.11 takes no eps of zero.
        cudnn = torch.backends.cudnn.enabled
        y = torch.batch_norm(x, self.weight, self.bias, mean, variance, False, 0.0, eps, cudnn)
        y = self._finish(y, residual)
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            for name, child in self.named_children():
                if name in self.followers:
                    y = child(y)
        elif self.followers:
            y = follow(self, y)
        return y

    def _by_batch(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """Normalise by the statistics of ``x``."""
        alike = residual is None or (residual.shape == x.shape and residual.dtype == x.dtype)
        fused = self.fusible and alike
        if self.training and self.over_ranks and self.ranks_of_a_ghost > 1:
            y = self._normalize_over_ranks(x, residual, fused)
        elif x.numel() == 0:  # torch's own gives weight and bias gradients, of zeros
            fused, y = False, F.batch_norm(x, None, None, self.weight, self.bias, True)
        elif self.training:
            y = self._over_ghosts(x, residual, fused)
        else:
            y = self._normalize(x, residual, fused, x.shape[0], 1)
        y = y if fused else self._finish(y, residual)
        return follow(self, y) if self.followers else y

    def _over_ghosts(self, x: Tensor, residual: Tensor | None, fused: bool) -> Tensor:
        """Normalise ghost by ghost: as the step was divided where that is known."""
        place = current_place()
        sizes = None if place is None else place.sizes
        if place is None or sizes is None or place.samples != x.shape[0]:
            size, full = self._ghosts(x)
            return self._normalize(x, residual, fused, size, full)
        last = len(sizes) - 1
        size = sizes[0] if last else self.ghost_size or sizes[0]
        if place.even:
            return self._normalize(x, residual, fused, size, last + (sizes[last] == size))
        # Samples that could not be read have left gaps: ghosts of any sizes, one by one.
        parts = x.split(sizes)
        residuals = [None] * len(parts) if residual is None else residual.split(sizes)
        done = []
        for number, (part, added) in enumerate(zip(parts, residuals, strict=True)):
            with ghost_place(place.first + number, place.total):
                done.append(self._normalize(part, added, fused, part.shape[0], 1))
        return torch.cat(done)

    def _normalize(
        self, x: Tensor, residual: Tensor | None, fused: bool, size: int, full: int
    ) -> Tensor:
        observer = self.gradient_observer if self.training and not frozen() else None
        norm = ghost_norm
        if observer is not None:
            norm = partial(observed_ghost_norm, observer=observer)
        y, statistics = norm(
            x,
            self.weight,
            self.bias,
            ghost_size=size,
            full=full,
            eps=self.eps,
            policy=self.policy,
            top=self.top,
            residual=residual if fused else None,
            relu=self.activation == "relu" and fused,
        )
        if self.training and self.records:
            self.record(statistics[0], self._variances(x, statistics[1], size, full))
        return y

    def _normalize_over_ranks(self, x: Tensor, residual: Tensor | None, fused: bool) -> Tensor:
        ranks = self._ranks()
        assert ranks is not None
        y, statistics = norm_over_ranks(
            x,
            self.weight,
            self.bias,
            ranks,
            shift=self.running_mean,
            eps=self.eps,
            policy=self.policy,
            top=self.top,
            residual=residual if fused else None,
            relu=self.activation == "relu" and fused,
        )
        self.record(statistics[:1], statistics[1:])
        return y

    def _finish(self, y: Tensor, residual: Tensor | None) -> Tensor:
        if residual is not None:
            y = y + residual
        return y if self.activation is None else F.relu(y)

    def _ranks(self) -> Ranks | None:
        return (self.ranks or all_ranks()) if self.over_ranks else None

    @property
    def ranks_of_a_ghost(self) -> int:
        ranks = self._ranks()
        return 1 if ranks is None else ranks.size

    def _ghosts(self, x: Tensor) -> tuple[int, int]:
        """Return the samples of a full ghost and how many full ones there are."""
        place = current_place()
        limit = None if place is None else place.total - place.first
        if self.ghost_size is None and place is not None and not self.over_ranks:
            raise ValueError("ghost_size is not set: inside of ghost_place a norm needs it")
        size = self.ghost_size or x.shape[0]
        minimum = 2 if x[0, 0].numel() < 2 else 1
        if min(size, x.shape[0]) < minimum:
            raise ValueError(
                f"expected more than 1 value per channel in training, got input of shape "
                f"{tuple(x.shape)} with ghost_size={self.ghost_size}"
            )
        full, tail = split_ghosts(x.shape[0], size, minimum, limit)
        if limit is not None and full + (tail > 0) > limit:
            raise ValueError(
                f"{x.shape[0]} samples are more than {limit} ghosts of {size}, all that "
                "are left in the step at this ghost_place"
            )
        return size, full

    @torch.no_grad()
    def _variances(self, x: Tensor, spread: Tensor, size: int, full: int) -> Tensor:
        """Return what the spreads, (ghosts, C), say of the variances."""
        length = x[0, 0].numel()
        factors = [
            self._variance_factor(count * length)
            for count in ([size] if full else []) + ([x.shape[0] - full * size])
        ]
        values = spread if self.policy == NormPolicy.L2 else spread.square()
        if spread.shape[0] == full or full == 0:
            return values * factors[0]
        return torch.cat((values[:-1] * factors[0], values[-1:] * factors[1]))

    def _variance_factor(self, count: int) -> float:
        if self.policy == NormPolicy.L2:
            return count / (count - 1)
        return norm_constant(self.policy, count) ** 2

    def _check_input_dim(self, input: Tensor) -> None:
        if not 2 <= input.dim() <= 5:
            raise ValueError(f"expected 2 to 5 dimensions, got input of shape {tuple(input.shape)}")
        if input.shape[1] != self.num_features:
            raise ValueError(
                f"expected {self.num_features} channels, got input of shape {tuple(input.shape)}"
            )

    def extra_repr(self) -> str:
        activation = f", activation={self.activation!r}" if self.activation else ""
        return (
            f"{super().extra_repr()}, ghost_size={self.ghost_size}, running={self.running!r}"
            f"{activation}"
        )


def over_ghosts(config: NormConfig) -> dict[str, Any]:
    """Return the arguments from section ``norm`` for a norm that can span ranks."""
    if config.sync_ranks is None:
        return {"ghost_size": config.ghost_size, "running": config.running}
    return {"process_group": "all", "running": config.running}  # the trainer names the group


def observable_norms(model: nn.Module) -> dict[str, OverGhosts]:
    """Return the norms whose gradients can be observed for each ghost, by name in ``model``.

    These norms have a ghost size, keep each ghost on one rank, and learn a weight or a bias.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, OverGhosts)
        and module.ghost_size is not None
        and any(param.requires_grad for param in module.parameters(recurse=False))
    }


def ties_samples(model: nn.Module) -> bool:
    """Return whether a norm of ``model`` takes its statistics over all samples of a forward."""
    return any(
        isinstance(module, _BatchNorm) and getattr(module, "ghost_size", None) is None
        for module in model.modules()
    )


def ties_ranks(model: nn.Module) -> bool:
    """Return whether a norm of ``model`` takes its statistics over ghosts of several ranks."""
    return any(
        isinstance(module, OverGhosts) and module.ranks_of_a_ghost > 1 for module in model.modules()
    )
