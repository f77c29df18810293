"""Who owns gradient exchange."""

from __future__ import annotations

from typing import Any

from torch import nn

from largebatch._errors import UserError
from largebatch._registry import Registry
from largebatch.distributed.preference import Preference
from largebatch.engine.config import DistributedConfig, Terms
from largebatch.engine.ddp import DataParallel
from largebatch.engine.deepspeed import DeepSpeed
from largebatch.engine.deepspeed_config import resolve
from largebatch.engine.engine import Engine
from largebatch.engine.fsdp import FullySharded
from largebatch.processes.environment import World

engines: Registry[Any] = Registry("distributed.engine")


@engines.register("ddp", "replicas that sum gradients in fixed buckets", "Li et al. 2020")
def _data_parallel(
    model: nn.Module, world: World, config: DistributedConfig, terms: Terms
) -> DataParallel:
    preference = Preference(config.allreduce, config.torus, config.wire_dtype)
    return DataParallel(model, world, config.bucket_mb, preference)


@engines.register(
    "fsdp",
    "parameters, gradients and optimizer state divided among the ranks (torch's FSDP2)",
    "Rajbhandari et al. 2020, stage 3; Zhao et al. 2023",
)
def _fully_sharded(
    model: nn.Module, world: World, config: DistributedConfig, terms: Terms
) -> FullySharded:
    return FullySharded(model, world, config.shard_ranks)


@engines.register(
    "deepspeed",
    "DeepSpeed's ZeRO stages 0, 1 and 2, with our optimizers or its own",
    "Rajbhandari et al. 2020",
)
def _deepspeed(
    model: nn.Module, world: World, config: DistributedConfig, terms: Terms
) -> DeepSpeed:
    return DeepSpeed(model, world, config, terms)


def build_engine(
    model: nn.Module, world: World, config: DistributedConfig, terms: Terms | None = None
) -> Engine:
    """Return the engine that ``config.engine`` names, owning ``model``'s gradients.

    Args:
        terms: what other sections of the config say that concerns it.
    """
    name = config.engine
    if name == "fsdp" and world.world_size == 1:
        name = "ddp"  # nothing to divide
    engine: Engine = engines.entry(name).factory(model, world, config, terms or Terms())
    return engine


def check_engine(config: DistributedConfig, terms: Terms) -> None:
    """Refuse a ``distributed`` section that cannot be, before any rank starts.

    Raises:
        UserError: a key out of range, of another engine, or contradicted by DeepSpeed's own config.
    """
    for key, engine in (
        ("allreduce", "ddp"),
        ("torus", "ddp"),
        ("wire_dtype", "ddp"),
        ("shard_ranks", "fsdp"),
        ("zero_stage", "deepspeed"),
        ("deepspeed_config", "deepspeed"),
    ):
        value = getattr(config, key)
        if value != getattr(DistributedConfig, key) and config.engine != engine:
            raise UserError(f"distributed.{key}={value}: only with distributed.engine={engine}")
    if config.shard_ranks is not None and config.shard_ranks < 1:
        raise UserError(f"distributed.shard_ranks={config.shard_ranks}: at least 1")
    if config.engine != "ddp" and terms.optimizer == "muon":
        raise UserError(
            f"optim.name=muon: needs whole matrices, which distributed.engine={config.engine}"
            " divides; take ddp"
        )
    if config.engine == "deepspeed":
        resolve(config, terms)
    elif terms.optimizer == "deepspeed":
        raise UserError("optim.name=deepspeed: only with distributed.engine=deepspeed")


__all__ = [
    "DataParallel",
    "DistributedConfig",
    "Engine",
    "Terms",
    "build_engine",
    "check_engine",
    "engines",
]
