"""What is listed is covered: every optimizer, norm, curve and task trains and resumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from largebatch.data import DataConfig, datasets
from largebatch.models import ModelConfig
from largebatch.nn import NormConfig, norms
from largebatch.nn.weight_norm import FORMS
from largebatch.optim import OptimConfig, optimizers
from largebatch.probes import WeightAverage
from largebatch.processes import World
from largebatch.processes.lifetime import StopRequest
from largebatch.record import RunDirectory
from largebatch.schedule import BatchConfig, Duration, ScheduleConfig, curves
from largebatch.tasks import config_of, tasks
from largebatch.train import checkpoint
from largebatch.train.build import build
from largebatch.train.config import Config, EmaConfig, PrecisionConfig, SnapshotConfig
from largebatch.train.trainer import Trainer

CPU = torch.device("cpu")
GHOST = NormConfig(kind="ghost", ghost_size=16)
ELSEWHERE = ("apex_lamb", "deepspeed")  # need a GPU and apex, and DeepSpeed's engine
RATES = {
    "adagrad": 0.01,
    "adadelta": 1.0,
    "rmsprop": 0.001,
    "rmsprop_warmup": 0.05,
    "muon": 0.02,
    "radam": 0.02,
    "sgd": 0.05,
    "sgdw": 0.05,
    "lars": 20.0,
    "lamb": 0.01,
}


def make(**sections: Any) -> Config:
    return Config(
        **{
            "data": DataConfig(limit=320),
            "batch": BatchConfig(size=64),
            "schedule": ScheduleConfig(length=Duration.parse("4ep"), curve="constant"),
            **sections,
        }
    )


def trainer_of(config: Config, folder: Path) -> Trainer:
    return Trainer(config, build(config, World(), CPU), RunDirectory(folder), StopRequest())


def advance(trainer: Trainer, steps: int) -> list[float]:
    """Take steps and return their losses."""
    losses = []
    walk = trainer.parts.feed.shares(trainer.position.samples)
    for _ in range(steps):
        share = next(walk)
        trainer.step(share)
        taken = trainer.ledger.open
        assert taken is not None
        losses.append(float(taken.sums[0] / taken.sums[-2]))
    walk.close()
    return losses


def check_learns_and_resumes(config: Config, folder: Path, learns: bool = True) -> None:
    whole = trainer_of(config, folder)
    losses = advance(whole, 14)
    if learns:
        assert sum(losses[-3:]) < 0.95 * sum(losses[:3]), losses
    first = trainer_of(config, folder)
    advance(first, 7)
    state = first.state.capture(vars(first.position))
    assert state is not None
    path = checkpoint.save(folder / "checkpoints", first.position.samples, state, keep=1)
    second = trainer_of(config, folder)
    second.resume(checkpoint.load(path))
    assert advance(second, 7) == losses[7:]
    expected, found = whole.parts.model.state_dict(), second.parts.model.state_dict()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    average, resumed = (each.panel.find(WeightAverage) for each in (whole, second))
    for name, tensor in (average.tensors if average else {}).items():
        assert resumed is not None
        assert torch.equal(tensor, resumed.tensors[name]), name


@pytest.mark.parametrize("name", [n for n in optimizers.names() if n not in ELSEWHERE])
def test_every_optimizer_learns_and_resumes(name: str, tmp_path: Path) -> None:
    optim = OptimConfig(name=name, lr=RATES.get(name, 0.002), weight_decay=1e-3, clip_norm=5.0)
    check_learns_and_resumes(make(optim=optim, norm=GHOST), tmp_path)


@pytest.mark.parametrize("name", ["sgd", "sgdw", "lars", "lamb"])
def test_an_offloaded_optimizer_learns_and_resumes(name: str, tmp_path: Path) -> None:
    optim = OptimConfig(name=name, lr=RATES[name], clip_norm=5.0, offload=True)
    check_learns_and_resumes(make(optim=optim, norm=GHOST), tmp_path)


@pytest.mark.parametrize("compute", ["fp32", "fp16"])
def test_the_lr_correction_learns_and_resumes(compute: Any, tmp_path: Path) -> None:
    optim = OptimConfig(lr=0.05, weight_decay=0.05, lr_correction=True)
    precision = PrecisionConfig(compute=compute)
    check_learns_and_resumes(make(optim=optim, norm=GHOST, precision=precision), tmp_path)


def test_the_lr_correction_takes_the_path_of_weight_decay(tmp_path: Path) -> None:
    losses = {}
    for decay, correction in ((0.05, False), (0.05, True), (0.0, False)):
        config = make(
            optim=OptimConfig(lr=0.05, weight_decay=decay, lr_correction=correction),
            norm=NormConfig(kind="ghost", ghost_size=16, eps=1e-12),
            schedule=ScheduleConfig(length=Duration.parse("4ep"), curve="cosine"),
            precision=PrecisionConfig(compute="fp64"),
        )
        losses[decay, correction] = advance(trainer_of(config, tmp_path), 14)
    assert losses[0.05, True] == pytest.approx(losses[0.05, False], rel=1e-8)
    assert losses[0.05, True] != pytest.approx(losses[0.0, False], rel=1e-3)


NORMS = {
    entry.name: NormConfig(
        kind=entry.name,
        ghost_size=16 if entry.facts.ghosts else None,
        groups=8 if entry.facts.own == "groups" else None,
    )
    for entry in norms
}


@pytest.mark.parametrize("running", ["sequential", "averaged", "last"])
@pytest.mark.parametrize("kind", NORMS)
def test_every_norm_learns_and_resumes(kind: str, running: Any, tmp_path: Path) -> None:
    if NORMS[kind].ghost_size is None and running != "sequential":
        pytest.skip("has no ghosts")
    norm = replace(NORMS[kind], running=running)
    # Weights that keep their norms must keep the signal alive: variance 2 / fan_in.
    init: Any = "kaiming" if kind in FORMS else "default"
    rate = 0.03 if kind in FORMS else 0.01 if kind == "none" else 0.05
    config = make(norm=norm, optim=OptimConfig(lr=rate), model=ModelConfig(init=init))
    check_learns_and_resumes(config, tmp_path, learns=kind != "none")


@pytest.mark.parametrize("kind", ["hadamard", "orthonormal"])
@pytest.mark.parametrize("compute", ["fp32", "bf16", "fp16"])
def test_every_classifier_learns_and_resumes(kind: Any, compute: Any, tmp_path: Path) -> None:
    config = make(
        model=ModelConfig(classifier=kind),
        norm=GHOST,
        precision=PrecisionConfig(compute=compute),
        optim=OptimConfig(lr=0.2),
    )
    check_learns_and_resumes(config, tmp_path)


@pytest.mark.parametrize("name", [entry.name for entry in curves])
def test_every_curve_trains_and_resumes(name: str, tmp_path: Path) -> None:
    schedule = ScheduleConfig(length=Duration.parse("4ep"), curve=name)
    if name == "multistep":
        schedule.milestones = [Duration.parse("1ep")]
    if name in ("sgdr", "cyclical"):
        schedule.cycle = Duration.parse("1ep")
    check_learns_and_resumes(
        make(schedule=schedule, optim=OptimConfig(lr=0.05), norm=GHOST), tmp_path
    )


def of_task(name: str, **sections: Any) -> Config:
    """Return a run of a task on its own kind of data, with a model for them."""
    kind = config_of(name)
    wanted = kind.defaults  # data and model of its own, where digits are not for it
    data = DataConfig(limit=320, **wanted.get("data", {}))
    optim = OptimConfig(lr=0.2 if name == "regression" else 0.02)
    if datasets.entry(data.name).facts.text:
        data.context, optim = 16, OptimConfig(name="adamw", lr=0.003)
    task = kind(name)
    if data.augment == "views":  # easy ones: the loss is to fall within 14 steps
        data.least_area, data.jitter, task.temperature = 0.5, 0.2, 0.2
        optim = OptimConfig(lr=0.05)
    model = ModelConfig(**wanted.get("model", {}))
    return make(**{"task": task, "norm": GHOST, "optim": optim, "data": data,
                   "model": model, **sections})  # fmt: skip


@pytest.mark.parametrize("name", tasks.names())
def test_every_task_learns_and_resumes(name: str, tmp_path: Path) -> None:
    check_learns_and_resumes(of_task(name), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("compute", ["bf16", "fp16", "fp64"])
@pytest.mark.parametrize("name", tasks.names())
def test_every_task_in_every_precision(name: str, compute: Any, tmp_path: Path) -> None:
    precision = PrecisionConfig(compute=compute)
    check_learns_and_resumes(of_task(name, precision=precision), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", tasks.names())
def test_every_task_compiles(name: str, tmp_path: Path) -> None:
    plain = of_task(name)
    expected = advance(trainer_of(plain, tmp_path), 4)
    compiled = replace(plain, model=replace(plain.model, compile=True))
    assert advance(trainer_of(compiled, tmp_path), 4) == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
def test_streams_with_a_memory_learn_and_resume(compiled: bool, tmp_path: Path) -> None:
    model = ModelConfig("transformer_xl", layers=2, memory=24, compile=compiled)
    config = of_task("causal_lm", model=model)
    config.data.streams = 64
    check_learns_and_resumes(config, tmp_path)


@pytest.mark.parametrize("compute", ["fp32", "bf16", "fp16", "fp64"])
def test_every_precision_learns_and_resumes(compute: Any, tmp_path: Path) -> None:
    config = make(
        precision=PrecisionConfig(compute=compute), norm=GHOST, optim=OptimConfig(lr=0.05)
    )
    check_learns_and_resumes(config, tmp_path)


SHARP = {"sam_rho": 0.05, "adaptive_clip": 0.02}


@pytest.mark.parametrize("compute", ["fp32", "fp16"])
def test_sharpness_and_clipped_units_learn_and_resume(compute: Any, tmp_path: Path) -> None:
    config = make(
        precision=PrecisionConfig(compute=compute),
        norm=GHOST,
        batch=BatchConfig(size=64, micro=32),
        optim=OptimConfig(lr=0.2, clip_norm=5.0, **SHARP),
    )
    check_learns_and_resumes(config, tmp_path)


def test_each_of_them_changes_the_run(tmp_path: Path) -> None:
    found = set()
    for keys in ({}, {"sam_rho": 0.05}, {"sam_rho": 0.05, "sam_scope": "rank"}, SHARP):
        trainer = trainer_of(make(norm=GHOST, optim=OptimConfig(lr=0.05, **keys)), tmp_path)
        found.add(advance(trainer, 3)[-1])
    assert len(found) == 3  # on one rank both scopes are one


@pytest.mark.parametrize("pipeline", ["torchvision", "dali"])
def test_every_pipeline_learns_and_resumes(pipeline: Any, tmp_path: Path) -> None:
    """Files of 10 steps an epoch, the last short; resumed in the middle of the first."""
    if pipeline == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    generator = np.random.default_rng(0)
    for split, count in (("train", 75), ("val", 4)):
        for label, name in enumerate(("dark", "light")):
            place = tmp_path / split / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 128, (24, 30, 3)) + 127 * label
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number:03d}.jpg")
    data = DataConfig(name="imagefolder", root=str(tmp_path), pipeline=pipeline, workers=0)
    data.image_size = 16
    config = make(data=data, batch=BatchConfig(size=16), norm=GHOST, optim=OptimConfig(lr=0.02))
    check_learns_and_resumes(config, tmp_path)


def test_everything_kept_besides_the_weights_resumes(tmp_path: Path) -> None:
    config = make(
        model=ModelConfig(drop=0.2),
        data=DataConfig(limit=320, mixup=0.2),
        norm=GHOST,
        batch=BatchConfig(size=64, micro=32),
        optim=OptimConfig(lr=0.05, momentum_half_life=Duration.parse("1ep")),
        ema=EmaConfig(half_life=Duration.parse("1ep")),
        schedule=ScheduleConfig(length=Duration.parse("4ep"), curve="sgdr"),
        snapshot=SnapshotConfig(cycles=2),
    )
    check_learns_and_resumes(config, tmp_path, learns=False)


@pytest.mark.slow
def test_a_network_without_norms_learns_and_resumes(tmp_path: Path) -> None:
    config = make(
        model=ModelConfig(name="nf_resnet50", drop_path=0.1, classifier="hadamard"),
        data=DataConfig(limit=64, image_size=32),
        batch=BatchConfig(size=8),
        optim=OptimConfig(lr=0.05, clip_norm=5.0),
    )
    check_learns_and_resumes(config, tmp_path, learns=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=() if k in ("batch", "ghost") else pytest.mark.long) for k in NORMS],
)
def test_every_norm_compiles(kind: str, tmp_path: Path) -> None:
    check_compiled(NORMS[kind], ModelConfig(), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hadamard", "orthonormal"])
def test_every_classifier_compiles(kind: Any, tmp_path: Path) -> None:
    check_compiled(GHOST, ModelConfig(classifier=kind), tmp_path)


def check_compiled(norm: NormConfig, model: ModelConfig, folder: Path) -> None:
    plain = make(norm=norm, optim=OptimConfig(lr=0.02), model=model)
    expected = advance(trainer_of(plain, folder), 4)
    compiled = make(norm=norm, optim=OptimConfig(lr=0.02), model=replace(model, compile=True))
    assert advance(trainer_of(compiled, folder), 4) == pytest.approx(expected, rel=1e-4)
