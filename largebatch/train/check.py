"""Find contradictions between config keys before any work begins."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator

from torch import nn

from largebatch._errors import UserError
from largebatch.data import require_dali
from largebatch.engine import EngineFacts, check_engine, engines
from largebatch.nn import check_norm, norms, spans_ranks, wrong_span
from largebatch.optim import build_optimizer, try_imported
from largebatch.probes import check_also, check_probes
from largebatch.schedule import require_cycles
from largebatch.tasks import check_task
from largebatch.train.config import Config, engine_terms
from largebatch.train.registries import chosen


def check(config: Config) -> None:
    """Refuse a config that cannot run, as far as possible without the data.

    Raises:
        UserError: one line with the key, its value and what is allowed.
    """
    for registry, name in chosen(config):
        registry.entry(name)
    check_probes(config.probes)
    check_also(config.evaluate.also)
    config.batch.check()
    config.schedule.check()
    check_task(config.task)
    config.model.check()
    config.data.check()
    check_norm(config.norm)
    check_engine(config.distributed, engine_terms(config))
    any_model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    # Finds what only the optimizer itself knows.
    try_imported(build_optimizer(config.optim, any_model), config.optim)
    for mistake in _numbers(config):
        raise UserError(mistake)
    for mistake in _contradictions(config):
        raise UserError(mistake)
    if config.data.pipeline == "dali":
        require_dali()


def _numbers(config: Config) -> Iterator[str]:
    run, ema, snapshot = config.run, config.ema, config.snapshot
    if not 0 <= run.seed < 2**63:
        yield f"run.seed={run.seed}: from 0 to 2^63 - 1"
    if not 1 <= run.nproc <= 4096:
        yield f"run.nproc={run.nproc}: from 1 to 4096 ranks"
    if config.evaluate.parts < 1:
        yield f"evaluate.parts={config.evaluate.parts}: at least 1, which keeps none apart"
    for figure, value in (run.target or {}).items():
        if not math.isfinite(value):
            yield f"run.target={{{figure}: {value}}}: a finite number"
    if run.target is not None and len(run.target) != 1:
        yield f"run.target={run.target}: one figure and its value, such as {{loss: 0.3}}"
    scale = config.precision.loss_scale
    if scale != "dynamic" and not (math.isfinite(float(scale)) and float(scale) > 0):
        yield f"precision.loss_scale={scale}: dynamic or a number above 0"
    if ema.half_life is not None and ema.half_life.value == 0:
        yield f"ema.half_life={ema.half_life}: more than 0"
    if not 0 <= snapshot.cycles <= 1000:
        yield f"snapshot.cycles={snapshot.cycles}: from 0 to 1000"
    if config.checkpoint.keep < 1:
        yield f"checkpoint.keep={config.checkpoint.keep}: at least 1"
    bucket = config.distributed.bucket_mb
    if bucket != "auto" and not (math.isfinite(bucket) and bucket > 0):
        yield f"distributed.bucket_mb={bucket}: auto or a number of MB above 0"
    grid = config.distributed.torus
    if grid is not None and not re.fullmatch(r"[1-9]\d{0,5}x[1-9]\d{0,5}", grid):
        yield f"distributed.torus={grid!r}: rows x columns, such as 2x4"
    if not 1 <= config.distributed.timeout <= 10**7:
        yield f"distributed.timeout={config.distributed.timeout}: from 1 to 10^7 seconds"
    if not 0 <= config.distributed.heartbeat <= 10**7:
        yield f"distributed.heartbeat={config.distributed.heartbeat}: from 0 to 10^7 seconds"
    if not 0 <= config.telemetry.hardware_every <= 10**7:
        yield f"telemetry.hardware_every={config.telemetry.hardware_every}: from 0 to 10^7 seconds"
    port = config.telemetry.prometheus_port
    if port is not None and not 0 <= port <= 65535:
        yield f"telemetry.prometheus_port={port}: from 0 to 65535"
    for key, every in (
        ("evaluate.every", config.evaluate.every),
        ("telemetry.every", config.telemetry.every),
        ("telemetry.layers", config.telemetry.layers),
        ("distributed.check_every", config.distributed.check_every),
        ("evaluate.every", config.evaluate.every),
        ("checkpoint.every", config.checkpoint.every),
    ):
        if every.value == 0:
            yield f"{key}={every}: more than 0"


def _contradictions(config: Config) -> Iterator[str]:
    batch, norm, ghost = config.batch, config.norm, config.norm.ghost_size
    for key, micro in [
        ("batch.micro", batch.micro),
        *((f"batch.plan[{i}].micro", phase.micro) for i, phase in enumerate(batch.plan)),
    ]:
        if spans_ranks(norm) and ghost and micro is not None:
            yield (
                f"{key}={micro}: with norm.kind={norm.kind} over ranks a forward pass holds one"
                f" ghost of norm.ghost_size={ghost}; leave one of the two out"
            )
        elif spans_ranks(norm) and micro == "auto":
            yield f"{key}=auto: ranks that share statistics need one size; give a number"
        elif isinstance(micro, int) and ghost and micro % ghost:
            near = max(ghost, round(micro / ghost) * ghost)
            yield f"{key}={micro}: a multiple of norm.ghost_size={ghost} is needed, such as {near}"
    if spans_ranks(norm):
        mistake = wrong_span(norm, config.run.nproc) if config.run.nproc > 1 else ""
        if mistake:
            yield mistake
    elif norms.entry(norm.kind).facts.ghosts and ghost is None:
        yield f"norm.ghost_size is not set: a run with norm.kind={norm.kind} needs it (samples)"
    if config.distributed.allreduce not in ("auto", "torus"):
        for key in ("torus", "wire_dtype"):
            value = getattr(config.distributed, key)
            if value not in (None, "fp32"):
                named = f"distributed.allreduce={config.distributed.allreduce}"
                yield f"distributed.{key}={value}: {named} takes no torus"
    if config.precision.compute == "fp64" and config.distributed.backend == "nccl":
        yield "precision.compute=fp64 runs on CPU: distributed.backend=nccl contradicts it"
    if config.precision.loss_scale != "dynamic" and config.precision.compute != "fp16":
        yield (
            f"precision.loss_scale={config.precision.loss_scale}: only with precision.compute=fp16,"
            f" not {config.precision.compute}"
        )
    if config.data.mixup_layers and config.model.compile:
        yield "data.mixup_layers with model.compile=true: leave one of the two out"
    if batch.control == "noise" and any(each.get("name") == "noise" for each in config.probes):
        yield (
            "probes: noise: batch.control=noise measures it; leave it out of probes, its keys are"
            " batch.noise_every, noise_half_life and noise_source"
        )
    if config.snapshot.cycles:
        require_cycles(config.schedule, config.snapshot.cycles)
    yield from _engine_contradictions(config)
    resume = config.checkpoint.resume
    if resume not in ("auto", "never") and not os.path.isdir(resume):
        yield f"checkpoint.resume={resume!r}: auto, never or the folder of a checkpoint"
    if config.schedule.regime == "steps" and config.schedule.length.unit == "st":
        yield "schedule.regime=steps stretches epochs and samples: schedule.length is in steps"
    directory = config.run.dir
    if directory is not None and os.path.exists(directory) and not os.path.isdir(directory):
        yield f"run.dir={directory!r}: a file stands there; name a folder"


def _engine_contradictions(config: Config) -> Iterator[str]:
    name, optim = config.distributed.engine, config.optim
    engine = engines.entry(name).facts

    def take(holds: Callable[[EngineFacts], bool]) -> str:
        return f"take {engines.where(holds)}"

    if config.snapshot.cycles and engine.divides_model:
        yield (
            f"snapshot.cycles={config.snapshot.cycles}: members are whole models, which"
            f" distributed.engine={name} divides; {take(lambda e: not e.divides_model)}"
        )
    if optim.sam_rho is not None and engine.keeps_gradients:
        yield (
            f"optim.sam_rho={optim.sam_rho}: needs the gradients of the first pass, which"
            f" distributed.engine={name} keeps to itself; {take(lambda e: not e.keeps_gradients)}"
        )
    if optim.sam_scope == "rank" and not engine.own_gradients:
        yield (
            f"optim.sam_scope=rank: distributed.engine={name} holds no rank's own gradients; take"
            f" global, or {engines.where(lambda e: e.own_gradients)}"
        )
    if optim.offload and not engine.whole_parameters:
        yield (
            f"optim.offload=true: distributed.engine={name} divides the parameters;"
            f" {take(lambda e: e.whole_parameters)}"
        )
    if optim.adaptive_clip is not None and engine.keeps_gradients:
        yield (
            f"optim.adaptive_clip={optim.adaptive_clip}: distributed.engine={name} clips by itself,"
            f" by optim.clip_norm alone; {take(lambda e: not e.keeps_gradients)}"
        )
