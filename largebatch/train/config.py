"""The whole configuration of a run: one section per package, named as on the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from largebatch._keys import FREE, OF_RANK, SETTLED, marked
from largebatch._paths import UserPath
from largebatch.data.config import DataConfig
from largebatch.engine.config import DistributedConfig, Terms
from largebatch.models.config import ModelConfig
from largebatch.nn.config import NormConfig
from largebatch.optim.config import OptimConfig
from largebatch.schedule import Duration
from largebatch.schedule.config import BatchConfig, ScheduleConfig
from largebatch.tasks import TaskConfig, default_config


@dataclass
class RunConfig:
    """The run itself."""

    dir: UserPath | None = field(default=None, metadata=FREE | OF_RANK)
    """Run directory; by default a new runs/NAME-DATE-TIME, or the unfinished run of this config."""
    name: str | None = field(default=None, metadata=FREE | OF_RANK)
    """Name of the run; by default MODEL-DATA."""
    seed: int = 0
    """Seed of initialisation, data order, augmentation and dropout."""
    deterministic: bool = False
    """Refuse operations whose result changes from run to run (on CPU there is none in use)."""
    nproc: int = field(default=1, metadata=FREE)
    """Start this many local ranks; not together with a launcher."""
    target: dict[str, float] | None = field(default=None, metadata=FREE)
    """Stop when a figure of the validation set is as good as this, such as {loss: 0.3};
    summary.json tells when."""
    on_nonfinite: Literal["stop", "skip", "ignore"] = field(default="stop", metadata=FREE)
    """A step's loss or gradients are inf or nan: stop ends the run after 20 such steps in a row;
    skip leaves them out and ends it no sooner; ignore trains on. None ends in success so."""


@dataclass
class PrecisionConfig:
    """Number formats."""

    compute: Literal["fp32", "bf16", "fp16", "fp64"] = "fp32"
    """Format of forward and backward: bf16 and fp16 by autocast; fp64 (CPU) for proofs.

    A CPU without bfloat16 arithmetic multiplies bfloat16 values in float32, which is quicker there.
    """
    loss_scale: float | Literal["dynamic"] = "dynamic"
    """Scale of the loss under fp16; a step whose gradients overflow is skipped."""


@dataclass
class EvaluateConfig:
    """When the run is judged, and by what."""

    every: Duration = field(default_factory=lambda: Duration.parse("1ep"))
    """Distance between evaluations; the end of the run is one as well."""
    also: list[dict[str, Any]] = field(default_factory=list)
    """Further evaluations: {name, every, and keys of its own}; package.module:callable is one."""
    parts: int = 1
    """Equal parts of the held-out set whose losses stand in the record too (loss_parts): a study
    sees by them what depends on the choice of the samples. 1: none; data.streams have none."""


@dataclass
class EmaConfig:
    """Exponential moving average of the weights."""

    half_life: Duration | None = None
    """Samples after which a weight counts half (2ep, 10ksa); none: no average is kept."""


@dataclass
class SnapshotConfig:
    """Snapshot ensembles (Huang et al. 2017): one member at the end of every cosine cycle."""

    cycles: int = 0
    """Members; the softmax outputs of all are averaged in evaluation. 0: no ensemble."""


@dataclass
class TelemetryConfig:
    """What is written to metrics.jsonl, and how often."""

    every: Duration = field(default_factory=lambda: Duration.parse("1st"))
    """Distance between train lines."""
    layers: Duration = field(default_factory=lambda: Duration.parse("1%"))
    """lars, lamb: distance between lines of layers.jsonl (norms and trust ratio of each tensor)."""
    hardware_every: float = 10.0
    """Seconds between readings of each rank's GPU, host and step times; 0: none are taken."""
    prometheus_port: int | None = None
    """Serve the newest figures to Prometheus on this port of 127.0.0.1, from rank 0 (0: any free
    port; none: not at all)."""


@dataclass
class CheckpointConfig:
    """When the run is saved, and how it continues."""

    every: Duration = field(default_factory=lambda: Duration.parse("1ep"))
    """Distance between checkpoints; the end of the run and a signal save as well."""
    keep: int = 2
    """Newest checkpoints kept; an older one goes after a newer one is complete."""
    at: list[Duration] = field(default_factory=list)
    """Checkpoints that stay beyond those, such as [10ep, 50%]: at the first step that ends there or
    past it, in checkpoints/at-10ep."""
    resume: Literal["auto", "never"] | UserPath = field(default="auto", metadata=OF_RANK)
    """auto (continue the run of this directory), never, or a checkpoint's path to start from: in a
    new directory as a branch, with its own clock of seconds and its own records."""


@dataclass
class Config:
    """Everything `largebatch train` needs to know."""

    run: RunConfig = field(default_factory=RunConfig)
    task: TaskConfig = field(default_factory=default_config)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    norm: NormConfig = field(default_factory=NormConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig, metadata=FREE)
    probes: list[dict[str, Any]] = field(default_factory=list, metadata=FREE)
    """Instruments on the live run: {name, every, and keys of its own}; package.module:callable is
    one. They change no bit of it."""
    ema: EmaConfig = field(default_factory=EmaConfig)
    snapshot: SnapshotConfig = field(default_factory=SnapshotConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig, metadata=FREE | OF_RANK)
    distributed: DistributedConfig = field(default_factory=DistributedConfig, metadata=FREE)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig, metadata=FREE)


RANK_KEYS = marked(Config, OF_RANK)
"""Keys that may differ between the ranks of a run: where it lies and what each host affords."""

FREE_KEYS = marked(Config, FREE)
"""Keys that may differ between a run and its continuation: they do not shape the trajectory."""

SETTLED_KEYS = marked(Config, SETTLED)
"""Keys that a run works out when it begins: a config that leaves one out asks for any value."""


def run_name(config: Config) -> str:
    """Return the run's name: the one given, or MODEL-DATA."""
    plain = (config.run.name or f"{config.model.name}-{config.data.name}").replace(":", ".")
    return plain.replace("/", "_")


def engine_terms(config: Config) -> Terms:
    """Return the settings that an engine with its own config (DeepSpeed) must not contradict."""
    return Terms(
        batch=config.batch.size,
        micro=config.batch.micro if isinstance(config.batch.micro, int) else None,
        optimizer=config.optim.name,
        lr=config.optim.lr,
        weight_decay=config.optim.weight_decay,
        clip_norm=config.optim.clip_norm,
        compute=config.precision.compute,
        loss_scale=config.precision.loss_scale,
        skip_nonfinite=config.run.on_nonfinite == "skip",
    )
