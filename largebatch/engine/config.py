"""The config section ``distributed``: the engine, and how gradients are exchanged."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from largebatch._keys import OF_RANK
from largebatch._paths import UserPath
from largebatch.distributed.cost_model import Wire
from largebatch.distributed.preference import Wanted
from largebatch.schedule import Duration


@dataclass
class DistributedConfig:
    """How ranks exchange gradients."""

    engine: str = "ddp"
    """Who owns gradient exchange: ddp, fsdp or deepspeed."""
    backend: Literal["auto", "gloo", "nccl"] = "auto"
    """c10d back end; auto takes NCCL on GPUs and gloo on CPU."""
    allreduce: Wanted = "auto"
    """How gradients are summed over several hosts; auto measures at start and decides by size."""
    torus: str | None = None
    """Grid of the 2D torus, rows x columns such as 2x4; none: a row a host. Asks for the torus."""
    wire_dtype: Wire = "fp32"
    """Type of float32 gradients between hosts, where the torus sums them."""
    bucket_mb: float | Literal["auto"] = 25.0
    """Size of one gradient message in MB; larger ones overlap less with the backward pass. auto:
    what links and backward pass, both measured, make best, on one host 25; a run keeps it."""
    timeout: float = 1800.0
    """Seconds a collective may take before every rank fails."""
    heartbeat: float = 120.0
    """Seconds without a sign of life after which a rank counts as lost and the run ends, naming it
    and the collective the others wait in; 0: only timeout ends the wait."""
    check_every: Duration = field(default_factory=lambda: Duration.parse("1000st"))
    """Distance between comparisons of the ranks' parameters, which must be equal to the bit."""
    shard_ranks: int | None = None
    """fsdp: ranks that divide one copy of the model among them; null: all."""
    zero_stage: Literal[0, 1, 2] | None = None
    """deepspeed: ZeRO stage; null: that of deepspeed_config, else 1."""
    deepspeed_config: UserPath | None = field(default=None, metadata=OF_RANK)
    """deepspeed: path of a JSON config of DeepSpeed's own, which may not contradict this one."""


@dataclass(frozen=True)
class Terms:
    """Settings of other sections that an engine's own config must not contradict.

    Attributes:
        batch, micro: samples of a step and of a pass.
        optimizer, lr, weight_decay, clip_norm: of the ``optim`` section.
        compute, loss_scale: of the ``precision`` section.
        skip_nonfinite: whether ``run.on_nonfinite`` is ``skip``.
    """

    batch: int = 1
    micro: int | None = None
    optimizer: str = "sgd"
    lr: float = 0.1
    weight_decay: float = 0.0
    clip_norm: float | None = None
    compute: str = "fp32"
    loss_scale: float | Literal["dynamic"] = "dynamic"
    skip_nonfinite: bool = False
