"""Exact layer-wise norms under DeepSpeed's ZeRO stages 1 and 2."""

from __future__ import annotations

from typing import Any

from largebatch._errors import UserError
from largebatch.optim.bundle import Fragment
from largebatch.optim.layerwise import LayerwiseOptimizer


def shard_for_deepspeed(engine: Any) -> None:
    """Give LARS or LAMB inside a DeepSpeed engine the layout of its flat partitions.

    ZeRO flattens each parameter group and gives every rank one stretch of the vector, so the
    optimizer sees no layers. DeepSpeed notes on each parameter where its part lies
    (``_hp_mapping``). This function passes the notes on to :meth:`LayerwiseOptimizer.shard`.

    Call it on every rank after ``deepspeed.initialize(model=..., optimizer=LAMB(...), ...)``, and
    again after loading a DeepSpeed checkpoint. The DeepSpeed config needs
    ``"zero_allow_untested_optimizer": true``.

    Raises:
        UserError: the engine has no LARS or LAMB, no such partitions, or LAMB clips by itself.
    """
    zero = engine.optimizer
    optimizer = getattr(zero, "optimizer", None)
    if not isinstance(optimizer, LayerwiseOptimizer):
        raise UserError(
            f"shard_for_deepspeed: the engine's optimizer is {type(optimizer or zero).__name__}; "
            "give deepspeed.initialize a LARS or LAMB of largebatch"
        )
    if not hasattr(zero, "single_partition_of_fp32_groups"):
        raise UserError("shard_for_deepspeed: zero_optimization.stage 1 or 2 is needed")
    if getattr(optimizer, "max_grad_norm", None) is not None:
        raise UserError(
            "shard_for_deepspeed: DeepSpeed steps one group at a time, so max_grad_norm would clip "
            "each by its own norm; set it to 0 and gradient_clipping in DeepSpeed's config"
        )
    for params, flat, ranks in zip(
        zero.bit16_groups,
        zero.single_partition_of_fp32_groups,
        zero.real_dp_process_group,
        strict=True,
    ):
        parts = [
            Fragment(place.start, place.numel, number, param.ndim)
            for number, param in enumerate(params)
            if param._hp_mapping is not None
            for place in [param._hp_mapping.hp_fragment_address]
        ]
        optimizer.shard(flat, parts, len(params), ranks)
