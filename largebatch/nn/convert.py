"""Replace a model's batch norms by another kind of norm, and back."""

from __future__ import annotations

import functools
from typing import get_args

import torch.distributed as dist
from torch import Tensor, nn
from torch.jit import ScriptModule
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from largebatch._errors import UserError
from largebatch.nn.batch_channel_norm import CHANNEL_PART, BatchChannelNorm
from largebatch.nn.carry_over import carry_over
from largebatch.nn.config import NormConfig, Running
from largebatch.nn.followers import follow, followers_of
from largebatch.nn.leaf import Proxy, recorded
from largebatch.nn.over_ghosts import OverGhosts
from largebatch.nn.over_ranks import ranks_of
from largebatch.nn.registry import NormFactory, NormFacts, norms, unused_keys
from largebatch.nn.running import RunningStatistics, forget_norms
from largebatch.nn.sample_norm import DEFAULT_GROUPS, SampleNorm
from largebatch.nn.sync_batch_norm import join_ranks
from largebatch.nn.weight_norm import ChannelBias, normalize_weights

_TORCH: tuple[type[_BatchNorm], ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class BatchNorm(_BatchNorm):
    """torch's batch norm for input of any rank from 2-D to 5-D."""

    followers: tuple[str, ...] = ()

    def forward(self, input: Tensor) -> Tensor:
        """Return ``input`` (N, C, ...) normalised."""
        if isinstance(input, Proxy):
            return recorded(self, input)
        return follow(self, super().forward(input))

    def _check_input_dim(self, input: Tensor) -> None:
        if not 2 <= input.dim() <= 5:
            raise ValueError(f"expected 2 to 5 dimensions, got input of shape {tuple(input.shape)}")


@norms.register(
    "batch",
    "torch's batch norm: statistics of each forward on each rank",
    "Ioffe and Szegedy 2015",
    NormFacts(per_forward=True),
)
def _batch(num_features: int, config: NormConfig) -> nn.Module:
    return BatchNorm(num_features)


@norms.register(
    "none", "no normalisation: every batch norm becomes the identity", facts=NormFacts()
)
def _none(num_features: int, config: NormConfig) -> nn.Module:
    return nn.Identity()


def check_norm(config: NormConfig) -> None:
    """Check the section ``norm`` as far as possible without a model.

    Raises:
        UserError: a key is out of range, missing, or has no effect beside ``norm.kind``.
    """
    norms.entry(config.kind)
    if config.ghost_size is not None and config.ghost_size < 1:
        raise UserError(f"norm.ghost_size={config.ghost_size}: must be at least 1 sample")
    if config.running not in get_args(Running):
        allowed = ", ".join(get_args(Running))
        raise UserError(f"norm.running={config.running!r}: choose from {allowed}")
    if config.topk is not None and config.topk < 1:
        raise UserError(f"norm.topk={config.topk}: must be at least 1 value")
    if config.sync_ranks is not None and config.sync_ranks < 1:
        raise UserError(f"norm.sync_ranks={config.sync_ranks}: must be at least 1 rank")
    if config.groups is not None and config.groups < 1:
        raise UserError(f"norm.groups={config.groups}: must be at least 1 group")
    if config.momentum is not None and not 0.0 <= config.momentum <= 1.0:
        raise UserError(f"norm.momentum={config.momentum}: must lie in 0 to 1")
    if config.half_life is not None:
        key = f"norm.half_life={config.half_life}"
        if config.half_life.value == 0:
            raise UserError(f"{key}: more than 0")
        if config.momentum is not None:
            raise UserError(f"{key}: takes the place of norm.momentum; leave one of the two out")
        if config.running == "last":
            raise UserError(f"{key}: no effect with norm.running=last, which keeps no average")
    if config.eps is not None and not 0.0 < config.eps < float("inf"):
        raise UserError(f"norm.eps={config.eps}: must be positive")
    for key, default in unused_keys(config.kind).items():
        value = getattr(config, key)
        if value != default:
            spanning = norms.where(lambda facts: facts.spans != "never")
            others = f"; kinds that span ranks are {spanning}" if key == "sync_ranks" else ""
            raise UserError(f"norm.{key}={value}: no effect with norm.kind={config.kind}{others}")
    # The factory knows what else its kind needs.
    norms.entry(config.kind).factory(config.groups or DEFAULT_GROUPS, config)


def spans_ranks(config: NormConfig) -> bool:
    """Return whether several ranks hold one ghost batch together under this section."""
    spans = norms.entry(config.kind).facts.spans
    return spans == "always" or (spans == "asked" and config.sync_ranks is not None)


def wrong_span(config: NormConfig, world_size: int) -> str:
    """Return why ``norm.sync_ranks`` does not fit ``world_size`` ranks; '' if it does."""
    span = config.sync_ranks
    if span is None or world_size % span == 0:
        return ""
    allowed = [str(n) for n in range(1, world_size + 1) if world_size % n == 0]
    return (
        f"norm.sync_ranks={span}: must divide the number of ranks, {world_size}: "
        f"{', '.join(allowed)}, or leave it out"
    )


def apply_norm(model: nn.Module, config: NormConfig) -> nn.Module:
    """Replace every batch norm of ``model`` by section ``norm``; see :func:`convert_batch_norm`."""
    check_norm(config)
    factory, facts = norms.entry(config.kind).factory, norms.entry(config.kind).facts

    done: dict[nn.Module, nn.Module] = {}  # a norm used twice stays one norm

    def exchange(module: nn.Module) -> nn.Module:
        if isinstance(module, ScriptModule) and "BatchNorm" in module.original_name:
            raise UserError(
                f"norm.kind={config.kind}: the model is compiled by torch.jit; convert it before"
            )
        if isinstance(module, (_BatchNorm, SampleNorm)):
            if module not in done:
                done[module] = _replacement(module, factory, config)
            return done[module]
        for name, child in list(module._modules.items()):  # named_children skips repetitions
            new = None if child is None else exchange(child)
            if new is not child:
                setattr(module, name, new)
        return module

    exchanged = exchange(model)
    if done and facts.weights:
        normalize_weights(exchanged, config.kind)
    forget_norms()
    return exchanged


def convert_batch_norm(
    model: nn.Module,
    kind: str,
    ghost_size: int | None = None,
    momentum: float | None = None,
    eps: float | None = None,
    running: Running = "sequential",
    topk: int | None = None,
    groups: int | None = None,
    process_group: dist.ProcessGroup | None = None,
) -> nn.Module:
    """Replace every batch norm of ``model`` (torch's or ours) by ``kind``, in place.

    Parameters and buffers are the same tensors afterwards, so an optimizer made before stays valid.
    Hooks, attributes and children of your own are kept, as are training flags, ``affine`` and
    ``track_running_stats``. ``momentum`` and ``eps`` are kept unless they are given. Norms that end
    in an activation, such as timm's, keep the activation (``largebatch.nn.FOLLOWERS``). Other
    subclasses of torch's norms are refused.

    ``kind="batch"`` restores the classes from before an earlier conversion. After ``layer``,
    ``instance`` and ``group``, which have no running statistics, the statistics begin anew.

    Args:
        model: changed in place.
        kind: a name in ``largebatch.nn.norms``.
        ghost_size: samples in a ghost batch. ``ghost`` and ``batch_channel`` need this argument.
            Without it ``l1``, ``linf`` and ``topk`` take all samples of a forward.
        momentum: weight of new running statistics; None keeps each module's own.
        eps: added to the variance; None keeps each module's own.
        running: how ghosts enter the running statistics: see ``largebatch.nn.running``.
        topk: number of deviations that kind ``topk`` averages; None means 10.
        groups: number of groups of channels, for kinds ``group`` and ``batch_channel``; None means
            32.
        process_group: ranks that hold a ghost together: a forward on all of them is one ghost. For
            ``sync`` (None: all ranks), ``l1``, ``linf`` and ``topk`` (None: each rank by itself).

    Returns:
        ``model``, or its replacement if it is itself a batch norm.

    Raises:
        UserError: the kind is unknown, or the arguments do not fit it.
    """
    sync_ranks = None if process_group is None else process_group.size()
    config = NormConfig(kind, ghost_size, sync_ranks, topk, groups, running, momentum, eps)
    if ghost_size is not None and (process_group is not None or spans_ranks(config)):
        raise UserError(f"ghost_size={ghost_size}: over ranks a forward is one ghost")
    model = apply_norm(model, config)
    return model if process_group is None else join_ranks(model, process_group)


def _replacement(
    old: _BatchNorm | SampleNorm, factory: NormFactory, config: NormConfig
) -> nn.Module:
    ours = isinstance(old, (RunningStatistics, SampleNorm))
    origin = old.converted_from if isinstance(old, (RunningStatistics, SampleNorm)) else type(old)
    activation = old.activation if isinstance(old, RunningStatistics) else None
    followers = followers_of(old)
    plain = ours or followers or type(old) in (*_TORCH, nn.SyncBatchNorm, BatchNorm)
    synchronised = plain and isinstance(old, nn.SyncBatchNorm)
    channels = old.num_channels if isinstance(old, SampleNorm) else old.num_features
    new: nn.Module
    if config.kind == "batch" and not ours and not synchronised:
        new = old
    elif not plain:
        raise UserError(f"norm.kind={config.kind}: {_why_not(old)}")
    elif config.kind == "batch" and origin is not None and not issubclass(origin, nn.SyncBatchNorm):
        new = origin(channels)
    else:
        new = factory(channels, config)
    if isinstance(new, nn.Identity) and followers:
        new = nn.Sequential()  # of the followers
    if isinstance(new, ChannelBias):
        _take_bias(new, old, config.kind)
    else:
        _take_over(old, new, config)
    if isinstance(new, (RunningStatistics, SampleNorm)):
        new.converted_from = origin
    if isinstance(new, RunningStatistics):
        new.forget_terms()
        new.activation = activation
        if isinstance(new, OverGhosts) and new.over_ranks:
            if isinstance(old, OverGhosts):
                new.ranks = old.ranks
            elif isinstance(old, nn.SyncBatchNorm) and old.process_group is not None:
                new.ranks = ranks_of(old.process_group)
    elif activation is not None:
        raise UserError(
            f"norm.kind={config.kind}: {type(old).__name__} has a fused {activation}, which this "
            "kind has not; take it out first by largebatch.nn.unfuse(model)"
        )
    if new is not old:
        try:
            carry_over(old, new, _names())
        except ValueError as error:
            raise UserError(f"norm.kind={config.kind}: {type(old).__name__}: {error}") from None
        if followers and hasattr(type(new), "followers"):
            new.followers = followers  # type: ignore[assignment]
        new.training = old.training
    return new


def _why_not(old: nn.Module) -> str:
    """Say why the place of ``old`` cannot be taken, and what to do."""
    name = type(old).__name__
    if isinstance(old, LazyModuleMixin):
        return f"{name} does not know its channels yet; run a batch through the model first"
    if parametrize.is_parametrized(old):
        return f"{name}: take its parametrizations away first, they would be lost"
    return (
        f"{name} is not a plain batch norm, so what it does besides would be lost; set "
        "norm.kind=batch, leave that part of the model out, or name it in "
        "largebatch.nn.FOLLOWERS if it only calls children of its own on the result"
    )


@functools.cache
def _names() -> frozenset[str]:
    """Return the names of everything that a norm of any kind has by itself."""
    found = {"converted_from", "followers"}
    for entry in norms:
        norm = entry.factory(1, NormConfig(entry.name, ghost_size=1, groups=1))
        found |= {*vars(norm), *norm._buffers, *norm._parameters}
    return frozenset(found)


def _take_over(old: _BatchNorm | SampleNorm, new: nn.Module, config: NormConfig) -> None:
    """Give ``new`` the parameters, buffers and settings of ``old`` that it has a place for."""
    if not isinstance(new, (_BatchNorm, SampleNorm)):
        return
    new.eps = old.eps if config.eps is None else config.eps
    new.affine = old.affine
    if new is not old:
        channel_part = _channel_part(old, new, config.kind)
        new._parameters.clear()
        new._parameters.update(old._parameters)
        for name in CHANNEL_PART:
            new._parameters.pop(name, None)
        new._parameters.update(channel_part)
    if isinstance(new, SampleNorm):
        return
    if isinstance(old, SampleNorm):  # statistics begin anew, where the weights are
        if old.weight is not None:
            new.to(old.weight.device, old.weight.dtype)
        new.momentum = new.momentum if config.momentum is None else config.momentum
        return
    new.momentum = old.momentum if config.momentum is None else config.momentum
    new.track_running_stats = old.track_running_stats
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        setattr(new, name, getattr(old, name))


def _channel_part(
    old: _BatchNorm | SampleNorm, new: _BatchNorm | SampleNorm, kind: str
) -> dict[str, nn.Parameter | None]:
    """Return the parameters of the channel part of ``new``: those of ``old``, or fresh ones."""
    if isinstance(old, BatchChannelNorm):
        part = {name: getattr(old, name) for name in CHANNEL_PART}
        if isinstance(new, BatchChannelNorm) and new.num_groups == old.num_groups:
            return part
        if bool((old.channel_weight != 1).any() or (old.channel_bias != 0).any()):
            raise UserError(
                f"norm.kind={kind}: the scale and shift of a batch-channel norm's groups have been"
                " trained and would be lost; keep kind batch_channel and its groups"
            )
    if not isinstance(new, BatchChannelNorm):
        return {}
    if old.weight is not None and not bool(old.weight.any()):
        raise UserError(
            f"norm.kind={kind}: a batch norm's scale is 0, by which the channel part would divide;"
            " leave model.residual_gamma unset"
        )
    for tensor in (*old.parameters(recurse=False), *old.buffers(recurse=False)):
        if tensor.is_floating_point():
            new.to(tensor.device, tensor.dtype)
            break
    return {name: getattr(new, name) for name in CHANNEL_PART}


def _take_bias(new: ChannelBias, old: _BatchNorm | SampleNorm, kind: str) -> None:
    """Keep the bias of ``old``; its scale would undo what the weights' norm fixes."""
    if old.weight is not None and not bool((old.weight == 1).all()):
        raise UserError(
            f"norm.kind={kind}: a batch norm's scale is not 1 and would be lost; leave "
            "model.residual_gamma unset"
        )
    if old.bias is not None:
        new.bias = old.bias
