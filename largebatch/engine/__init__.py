"""Who owns gradient exchange."""

from __future__ import annotations

from typing import Any

from torch import nn

from largebatch._registry import Registry
from largebatch.distributed.environment import World
from largebatch.distributed.preference import Preference
from largebatch.engine.config import DistributedConfig
from largebatch.engine.ddp import DataParallel

engines: Registry[Any] = Registry("distributed.engine")


@engines.register("ddp", "replicas that sum gradients in fixed buckets", "Li et al. 2020")
def _data_parallel(model: nn.Module, world: World, config: DistributedConfig) -> DataParallel:
    preference = Preference(config.allreduce, config.torus, config.wire_dtype)
    return DataParallel(model, world, config.bucket_mb, preference)


def build_engine(model: nn.Module, world: World, config: DistributedConfig) -> DataParallel:
    """Return the engine that ``config.engine`` names, owning ``model``'s gradients."""
    engine: DataParallel = engines.entry(config.engine).factory(model, world, config)
    return engine


__all__ = ["DataParallel", "DistributedConfig", "build_engine", "engines"]
