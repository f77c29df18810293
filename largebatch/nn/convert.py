"""Exchange a model's batch norms for another kind, and back."""

from __future__ import annotations

from typing import get_args

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from largebatch._errors import UserError
from largebatch.nn.config import NormConfig, Running
from largebatch.nn.registry import NormFactory, norms
from largebatch.nn.running import RunningStatistics, forget_norms
from largebatch.nn.weight_norm import FORMS, ChannelBias, normalize_weights

_STATE = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_TORCH: tuple[type[_BatchNorm], ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class BatchNorm(_BatchNorm):
    """torch's batch norm for input of any rank from 2-D to 5-D."""

    def _check_input_dim(self, input: Tensor) -> None:
        if not 2 <= input.dim() <= 5:
            raise ValueError(f"expected 2 to 5 dimensions, got input of shape {tuple(input.shape)}")


@norms.register("batch", "torch's batch norm: statistics of each forward on each rank",
                "Ioffe and Szegedy 2015")  # fmt: skip
def _batch(num_features: int, config: NormConfig) -> nn.Module:
    return BatchNorm(num_features)


@norms.register("none", "no normalisation: every batch norm becomes the identity")
def _none(num_features: int, config: NormConfig) -> nn.Module:
    return nn.Identity()


def check_norm(config: NormConfig) -> None:
    """Check what can be known of the section without a model.

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
    if config.topk is not None and config.kind != "topk":
        raise UserError(f"norm.topk={config.topk}: no effect with norm.kind={config.kind}")
    if config.momentum is not None and not 0.0 <= config.momentum <= 1.0:
        raise UserError(f"norm.momentum={config.momentum}: must lie in 0 to 1")
    if config.eps is not None and not 0.0 < config.eps < float("inf"):
        raise UserError(f"norm.eps={config.eps}: must be positive")
    if config.kind in ("batch", "none", *FORMS):
        for key, default in (("ghost_size", None), ("running", "sequential")):
            value = getattr(config, key)
            if value != default:
                raise UserError(f"norm.{key}={value}: no effect with norm.kind={config.kind}")
    # The factory knows what else its kind needs.
    norms.entry(config.kind).factory(1, config)


def apply_norm(model: nn.Module, config: NormConfig) -> nn.Module:
    """Exchange every batch norm of ``model`` as the config's section says; see below."""
    check_norm(config)
    factory = norms.entry(config.kind).factory

    done: dict[nn.Module, nn.Module] = {}  # a norm used twice stays one norm

    def exchange(module: nn.Module) -> nn.Module:
        if isinstance(module, _BatchNorm):
            if module not in done:
                done[module] = _replacement(module, factory, config)
            return done[module]
        for name, child in list(module._modules.items()):  # named_children skips repetitions
            new = None if child is None else exchange(child)
            if new is not child:
                setattr(module, name, new)
        return module

    exchanged = exchange(model)
    if done and config.kind in FORMS:
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
) -> nn.Module:
    """Exchange every batch norm of ``model`` (torch's or ours) for ``kind``, in place.

    Parameters and buffers are the same tensors afterwards, so an optimizer made before stays
    valid; training flags, ``affine`` and ``track_running_stats`` are kept, and ``momentum`` and
    ``eps`` where they are not given. ``kind="batch"`` gives back the very classes that an earlier
    conversion took away.

    Args:
        model: changed in place.
        kind: a name in ``largebatch.nn.norms``.
        ghost_size: samples in a ghost batch, for kinds that have them; ``ghost`` needs it, without
            it ``l1``, ``linf`` and ``topk`` take all samples of a forward.
        momentum: weight of new running statistics; None keeps each module's own.
        eps: added to the variance; None keeps each module's own.
        running: how ghosts enter the running statistics.
        topk: the number of deviations that kind ``topk`` averages; None means 10.

    Returns:
        ``model``, or its replacement if it is itself a batch norm.

    Raises:
        UserError: the kind is unknown, or the arguments do not fit it.
    """
    return apply_norm(model, NormConfig(kind, ghost_size, topk, running, momentum, eps))


def _replacement(old: _BatchNorm, factory: NormFactory, config: NormConfig) -> nn.Module:
    ours = isinstance(old, RunningStatistics)
    origin = old.converted_from if isinstance(old, RunningStatistics) else type(old)
    activation = old.activation if isinstance(old, RunningStatistics) else None
    plain = ours or type(old) in (*_TORCH, nn.SyncBatchNorm, BatchNorm)
    new: nn.Module
    if config.kind == "batch" and not ours and type(old) is not nn.SyncBatchNorm:
        new = old
    elif not plain:
        raise UserError(
            f"norm.kind={config.kind}: {type(old).__name__} is not a plain batch norm, so what it "
            "does besides would be lost; set norm.kind=batch"
        )
    elif config.kind == "batch" and origin in _TORCH:
        new = origin(old.num_features)
    else:
        new = factory(old.num_features, config)
    if isinstance(new, _BatchNorm):
        new.momentum = old.momentum if config.momentum is None else config.momentum
        new.eps = old.eps if config.eps is None else config.eps
        for name in (*_STATE, "affine", "track_running_stats"):
            setattr(new, name, getattr(old, name))
    if isinstance(new, ChannelBias):
        _take_bias(new, old, config.kind)
    if isinstance(new, RunningStatistics):
        new.forget_terms()
        new.converted_from = origin
        new.activation = activation
    elif activation is not None:
        raise UserError(
            f"norm.kind={config.kind}: {type(old).__name__} has a fused {activation}, which this "
            "kind has not"
        )
    new.train(old.training)
    return new


def _take_bias(new: ChannelBias, old: _BatchNorm, kind: str) -> None:
    """Keep the bias of ``old``; its scale would undo what the weights' norm fixes."""
    if old.weight is not None and not bool((old.weight == 1).all()):
        raise UserError(
            f"norm.kind={kind}: a batch norm's scale is not 1 and would be lost; leave "
            "model.residual_gamma unset"
        )
    if old.bias is not None:
        new.bias = old.bias
