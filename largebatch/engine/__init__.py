"""Engines: they own the exchange of gradients between ranks, and the optimizer's step.

``distributed.engine`` in a config chooses one. ``ddp`` holds the whole model on every rank,
``fsdp`` shards it, and ``deepspeed`` uses DeepSpeed's ZeRO.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import nn

from largebatch._errors import UserError
from largebatch._registry import Facts, Registry
from largebatch.distributed.preference import Preference
from largebatch.engine.config import DistributedConfig, Terms
from largebatch.engine.ddp import DataParallel
from largebatch.engine.deepspeed import DeepSpeed
from largebatch.engine.deepspeed_config import resolve
from largebatch.engine.engine import Engine
from largebatch.engine.fsdp import FullySharded
from largebatch.optim import optimizers
from largebatch.processes.environment import World


@dataclass(frozen=True)
class EngineFacts(Facts):
    """Facts about an engine that the rest of the package needs.

    Attributes:
        keys: the keys of section ``distributed`` that only this engine uses.
        divides_model: with several ranks, each rank holds a part of the model.
        whole_parameters: the optimizer steps the model's own parameters, whole.
        own_gradients: each rank's own gradient can be read before the sum over ranks.
        keeps_gradients: no other code may read or clip the gradients.
        makes_optimizers: it can make the optimizer from its own config.
        check: refuses other settings that the engine does not support.
    """

    keys: tuple[str, ...] = ()
    divides_model: bool = False
    whole_parameters: bool = False
    own_gradients: bool = False
    keeps_gradients: bool = False
    makes_optimizers: bool = False
    check: Callable[[DistributedConfig, Terms], object] | None = None

    def words(self) -> Iterator[str]:
        """Yield the facts, one short line each."""
        own = [f"distributed.{name}" for name in self.keys]
        yield f"keys of its own: {', '.join(own) or 'none'}"
        if self.divides_model:
            yield "ranks hold parts of the model: no snapshot ensembles"
        if not self.whole_parameters:
            yield "divides what the optimizer steps: no optim.offload, no whole matrices"
        if not self.own_gradients:
            yield "holds no rank's own gradients: no optim.sam_scope=rank"
        if self.keeps_gradients:
            yield "keeps the gradients to itself: no optim.sam_rho, no optim.adaptive_clip"
        if self.makes_optimizers:
            makers = optimizers.where(lambda facts: facts.by_engine)
            yield f"makes optimizers of its own, with optim.name={makers}"


engines: Registry[Callable[..., Engine], EngineFacts] = Registry(
    "distributed.engine", lambda _: EngineFacts()
)


@engines.register(
    "ddp",
    "replicas that sum gradients in fixed buckets",
    "Li et al. 2020",
    EngineFacts(("allreduce", "torus", "wire_dtype"), whole_parameters=True, own_gradients=True),
)
def _data_parallel(
    model: nn.Module, world: World, config: DistributedConfig, terms: Terms
) -> DataParallel:
    preference = Preference(config.allreduce, config.torus, config.wire_dtype)
    return DataParallel(model, world, config.bucket_mb, preference)


@engines.register(
    "fsdp",
    "parameters, gradients and optimizer state divided among the ranks (torch's FSDP2)",
    "Rajbhandari et al. 2020, stage 3; Zhao et al. 2023",
    EngineFacts(("shard_ranks",), divides_model=True),
)
def _fully_sharded(
    model: nn.Module, world: World, config: DistributedConfig, terms: Terms
) -> FullySharded:
    return FullySharded(model, world, config.shard_ranks)


@engines.register(
    "deepspeed",
    "DeepSpeed's ZeRO stages 0, 1 and 2, with our optimizers or its own",
    "Rajbhandari et al. 2020",
    EngineFacts(
        ("zero_stage", "deepspeed_config"),
        keeps_gradients=True,
        makes_optimizers=True,
        check=resolve,
    ),
)
def _deepspeed(
    model: nn.Module, world: World, config: DistributedConfig, terms: Terms
) -> DeepSpeed:
    return DeepSpeed(model, world, config, terms)


def build_engine(
    model: nn.Module, world: World, config: DistributedConfig, terms: Terms | None = None
) -> Engine:
    """Return the engine that ``config.engine`` names, which then owns ``model``'s gradients.

    Args:
        terms: settings of other config sections that concern the engine.
    """
    entry = engines.entry(config.engine)
    if entry.facts.divides_model and world.world_size == 1:
        entry = engines.entry(DistributedConfig.engine)  # nothing to divide
    return entry.factory(model, world, config, terms or Terms())


def check_engine(config: DistributedConfig, terms: Terms) -> None:
    """Check section ``distributed`` before any rank starts.

    Raises:
        UserError: a key is out of range, belongs to another engine, or contradicts the engine's own
            config.
    """
    engine, optimizer = engines.entry(config.engine).facts, optimizers.entry(terms.optimizer).facts
    for other in engines:
        for key in other.facts.keys:
            value = getattr(config, key)
            if value != getattr(DistributedConfig, key) and key not in engine.keys:
                raise UserError(
                    f"distributed.{key}={value}: only with distributed.engine={other.name}"
                )
    if config.shard_ranks is not None and config.shard_ranks < 1:
        raise UserError(f"distributed.shard_ranks={config.shard_ranks}: at least 1")
    if optimizer.whole_matrices and not engine.whole_parameters:
        raise UserError(
            f"optim.name={terms.optimizer}: needs whole matrices, which"
            f" distributed.engine={config.engine} divides;"
            f" take {engines.where(lambda facts: facts.whole_parameters)}"
        )
    if optimizer.by_engine and not engine.makes_optimizers:
        makers = engines.where(lambda facts: facts.makes_optimizers)
        raise UserError(f"optim.name={terms.optimizer}: only with distributed.engine={makers}")
    if engine.check is not None:
        engine.check(config, terms)


__all__ = [
    "DataParallel",
    "DistributedConfig",
    "Engine",
    "EngineFacts",
    "Terms",
    "build_engine",
    "check_engine",
    "engines",
]
