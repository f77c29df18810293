"""Merge a user's DeepSpeed config with ours; refuse contradictions by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from largebatch._documents import read_json
from largebatch._errors import UserError
from largebatch.engine.config import DistributedConfig, Terms
from largebatch.optim import optimizers

KEY = "distributed.deepspeed_config"
SIXTEEN_BIT = ("fp16", "bf16")


def resolve(config: DistributedConfig, terms: Terms) -> dict[str, Any]:
    """Return the config for DeepSpeed; ``"auto"`` in the user's file means our value.

    Raises:
        UserError: the file cannot be read, or sets something that another key contradicts or
            decides.
    """
    user = _without_auto(_read(config.deepspeed_config)) if config.deepspeed_config else {}
    for key, value, reason in _contradictions(user, config, terms):
        raise UserError(f"{KEY}: {key}={json.dumps(value)}: {reason}")
    if terms.compute == "fp64":
        raise UserError(
            "precision.compute=fp64: DeepSpeed has fp32, bf16 and fp16; for fp64 take"
            " distributed.engine=ddp or fsdp"
        )
    stage = config.zero_stage if config.zero_stage is not None else _stage(user)
    kind = str(user.get("optimizer", {}).get("type"))
    if stage and "adagrad" in (terms.optimizer, kind.lower()):
        raise UserError(
            f"optim.name={terms.optimizer}: DeepSpeed makes Adagrad anew without its groups at"
            f" ZeRO stage {stage}; take distributed.zero_stage=0 or distributed.engine=ddp"
        )
    if stage and terms.skip_nonfinite:
        raise UserError(
            f"run.on_nonfinite=skip: DeepSpeed's ZeRO stage {stage} leaves steps out by a rule of"
            " its own; take distributed.zero_stage=0, or distributed.engine=ddp or fsdp"
        )
    resolved = {
        "steps_per_print": None,
        "zero_allow_untested_optimizer": True,
        **user,
        # Samples of a step and of a pass change during a run: the trainer counts them itself.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_allreduce_op": "sum",
        "gradient_clipping": terms.clip_norm or 0.0,
        "zero_optimization": {**user.get("zero_optimization", {}), "stage": stage},
    }
    # Weights stay float32: see engine/README.md.
    for key in ("train_batch_size", *SIXTEEN_BIT):
        resolved.pop(key, None)
    if "optimizer" in user:
        params = {**user["optimizer"].get("params", {}), "lr": terms.lr}
        params.pop("weight_decay", None)  # each group has its own
        resolved["optimizer"] = {**user["optimizer"], "params": params}
    return resolved


def _read(path: str) -> dict[str, Any]:
    name = f"{KEY}={path!r}"
    loaded = read_json(path, name)
    if not isinstance(loaded, dict):
        raise UserError(f"{name}: expected an object of DeepSpeed's keys")
    return loaded


def _without_auto(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_auto(item) for key, item in value.items() if item != "auto"}
    return value


def _contradictions(
    user: dict[str, Any], config: DistributedConfig, terms: Terms
) -> Iterator[tuple[str, Any, str]]:
    """Yield key, value and reason of what the user's file may not say."""
    for key in ("zero_optimization", "fp16", "bf16", "torch_autocast", "optimizer"):
        if not isinstance(user.get(key, {}), dict):
            yield key, user[key], "a section of keys, not a value"
            return
    for key, ours, name in (
        ("train_batch_size", terms.batch, "batch.size"),
        ("train_micro_batch_size_per_gpu", terms.micro, "batch.micro"),
        ("gradient_accumulation_steps", 1, ""),
        ("gradient_clipping", terms.clip_norm or 0.0, "optim.clip_norm"),
        ("gradient_allreduce_op", "sum", ""),
    ):
        if key in user and user[key] != ours:
            if name:
                shown = "null" if key == "gradient_clipping" and not ours else json.dumps(ours)
                yield key, user[key], f"contradicts {name}={shown}; leave it out or make it 'auto'"
            else:
                yield key, user[key], "batch.size and batch.micro decide that; leave it out"
    for section in (
        "scheduler",
        "curriculum_learning",
        "data_efficiency",
        "progressive_layer_drop",
    ):
        if section in user:
            yield section, "...", "the sections schedule, batch and data decide that; leave it out"
    for section in (*SIXTEEN_BIT, "torch_autocast"):
        enabled = user.get(section, {}).get("enabled", False)
        if section == "torch_autocast" and enabled:
            yield "torch_autocast.enabled", True, "precision.compute decides that; leave it out"
        if (
            section in SIXTEEN_BIT
            and bool(enabled) != (section == terms.compute)
            and (enabled or "enabled" in user.get(section, {}))
        ):
            yield (
                f"{section}.enabled",
                enabled,
                f"contradicts precision.compute={terms.compute}",
            )
        if section == terms.compute:
            for key in sorted(set(user.get(section, {})) - {"enabled", "loss_scale"}):
                yield f"{section}.{key}", user[section][key], "precision decides that; leave it out"
    scale = user.get("fp16", {}).get("loss_scale")
    ours = 0 if terms.loss_scale == "dynamic" else terms.loss_scale
    if terms.compute == "fp16" and scale is not None and scale != ours:
        yield (
            "fp16.loss_scale",
            scale,
            f"contradicts precision.loss_scale={terms.loss_scale} (dynamic is 0 there)",
        )
    stage = _stage(user)
    if stage not in (0, 1, 2):
        yield (
            "zero_optimization.stage",
            stage,
            "0, 1 or 2; for divided parameters take distributed.engine=fsdp",
        )
    if (
        config.zero_stage is not None
        and stage != config.zero_stage
        and "stage" in user.get("zero_optimization", {})
    ):
        yield (
            "zero_optimization.stage",
            stage,
            f"contradicts distributed.zero_stage={config.zero_stage}",
        )
    yield from _optimizer(user.get("optimizer"), terms)


def _optimizer(section: dict[str, Any] | None, terms: Terms) -> Iterator[tuple[str, Any, str]]:
    by_engine = optimizers.entry(terms.optimizer).facts.by_engine
    if section is None:
        if by_engine:
            yield (
                "optimizer",
                None,
                f"optim.name={terms.optimizer} takes the optimizer from this section, such as"
                ' {"type": "AdamW"}',
            )
        return
    kind = section.get("type")
    if not by_engine:
        own = optimizers.where(lambda facts: facts.by_engine)
        yield (
            "optimizer.type",
            kind,
            f"contradicts optim.name={terms.optimizer}; optim.name={own} takes DeepSpeed's own",
        )
    params = section.get("params", {})
    for key, ours in (("lr", terms.lr), ("weight_decay", terms.weight_decay)):
        if isinstance(params, dict) and key in params and params[key] != ours:
            yield f"optimizer.params.{key}", params[key], f"contradicts optim.{key}={ours}"


def _stage(user: dict[str, Any]) -> Any:
    return user.get("zero_optimization", {}).get("stage", 1)
