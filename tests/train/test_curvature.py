"""Probes that take a step's passes once more, on real runs against dense derivatives."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from largebatch._errors import UserError
from largebatch.data import DataConfig
from largebatch.engine import DistributedConfig
from largebatch.models import ModelConfig
from largebatch.nn import NormConfig
from largebatch.optim import OptimConfig
from largebatch.probes import Curvature, Replay, StepRoom
from largebatch.probes.hessian import GaussNewton, Hessian
from largebatch.probes.lanczos import lanczos
from largebatch.probes.parameter_space import ParameterSpace
from largebatch.probes.spectrum import quadrature
from largebatch.processes import World
from largebatch.processes.lifetime import StopRequest
from largebatch.record import RunDirectory
from largebatch.schedule import BatchConfig, Duration, ScheduleConfig
from largebatch.tasks.classification import ClassificationConfig
from largebatch.train.build import build
from largebatch.train.config import (
    Config,
    EvaluateConfig,
    PrecisionConfig,
    TelemetryConfig,
)
from largebatch.train.trainer import Trainer

CPU = torch.device("cpu")

MODELS = '''
from torch import nn


def tanh_net(num_classes, image_shape):
    """1,960 parameters and no norm: smooth."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 26), nn.Tanh(), nn.Dropout(0.1), nn.Linear(26, num_classes)
    )


def plain_net(num_classes, image_shape):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 26), nn.Tanh(), nn.Linear(26, num_classes)
    )


def deep_net(num_classes, image_shape):
    layers = [nn.Flatten(), nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(24, num_classes))


def normed(num_classes, image_shape):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, num_classes)
    )
'''


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "nets.py").write_text(MODELS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("nets", None)


def trainer_of(folder: Path, probe: dict[str, Any], **sections: Any) -> Trainer:
    config = Config(
        **{
            "model": ModelConfig(name="nets:tanh_net"),
            "data": DataConfig(limit=300),
            "batch": BatchConfig(size=75, micro=20),
            "norm": NormConfig(kind="ghost", ghost_size=10),
            "optim": OptimConfig(lr=0.05),
            "schedule": ScheduleConfig(length=Duration.parse("4st")),
            "telemetry": TelemetryConfig(hardware_every=0.0),
            "precision": PrecisionConfig(compute="fp64"),
            "probes": [{"every": "1st", **probe}],
            **sections,
        }
    )
    directory = RunDirectory(folder / "run")
    directory.create()
    return Trainer(config, build(config, World(), CPU), directory, StopRequest())


def replay_of(trainer: Trainer) -> Replay:
    """Take the first step, and return what takes it once more."""
    shares = trainer.parts.feed.shares(0)
    trainer.step(next(shares))
    replay = trainer.parts.stepper.replay
    assert replay is not None
    return replay


def dense(trainer: Trainer, replay: Any) -> tuple[Tensor, Tensor]:
    """Return Hessian and Gauss-Newton matrix of the step's loss by double backward passes."""
    stepper, params = trainer.parts.stepper, list(trainer.parts.model.parameters())
    size = sum(p.numel() for p in params)
    found = torch.zeros(2, size, size, dtype=torch.float64)

    def flat(grads: Any, rows: int) -> Tensor:
        return torch.cat([g.reshape(rows, -1) for g in grads], 1)

    def batched(outputs: Tensor) -> Tensor:
        eye = torch.eye(len(outputs), dtype=torch.float64)
        rows = [
            flat(
                torch.autograd.grad(
                    outputs, params, part, retain_graph=True, is_grads_batched=True
                ),
                len(part),
            )
            for part in eye.split(200)
        ]
        return torch.cat(rows)

    for one in replay._passes:
        with stepper.frozen():
            logits, targets = stepper.forward(
                replay._share, one, lambda net, batch: (net(batch.inputs), batch.targets)
            )
        loss = nn.functional.cross_entropy(logits, targets, reduction="sum") / 75
        slopes = flat(torch.autograd.grad(loss, params, create_graph=True), 1)[0]
        found[0] += batched(slopes)
        jacobian = batched(logits.flatten()).view(len(logits), -1, size)
        shares = logits.detach().softmax(1)
        inner = torch.diag_embed(shares) - shares[:, :, None] * shares[:, None]
        found[1] += torch.einsum("nap,nab,nbq->pq", jacobian, inner, jacobian) / 75
    return found[0], found[1]


def test_against_dense_derivatives(folder: Path) -> None:
    """1,960 parameters in float64, dropout, passes of 20 and an uneven last one."""
    trainer = trainer_of(folder, {"name": "curvature"})
    replay = replay_of(trainer)
    space = ParameterSpace(trainer.parts.model)
    assert space.size == 1960
    whole, part = dense(trainer, replay)
    before = space.weights()
    for kind, matrix in ((Hessian, whole), (GaussNewton, part)):
        product = kind(space, replay)
        vector = space.random(5)
        torch.testing.assert_close(
            product(vector), matrix @ vector, rtol=0, atol=1e-7 * float((matrix @ vector).norm())
        )
    assert torch.equal(space.weights(), before)
    exact = torch.linalg.eigvalsh(whole)
    found = lanczos(Hessian(space, replay), space.random(0), 60, space).values
    torch.testing.assert_close(found[-5:], exact[-5:], rtol=1e-6, atol=0)
    density = quadrature(Hessian(space, replay), space, products=12, vectors=12, seed=1)
    for power, value in ((1, whole.trace() / 1960), (2, whole.square().sum() / 1960)):
        mean, error = density.moment(power)
        assert abs(mean - float(value)) < 3 * error
    loss = replay.loss()
    logged = trainer.ledger.open
    assert logged is not None and loss < logged.sums[0] / 75  # the step went down


def test_against_curvlinops(folder: Path) -> None:
    """The same products by another library, to 1e-5 of the vector's length."""
    curvlinops = pytest.importorskip("curvlinops")
    trainer = trainer_of(folder, {"name": "curvature"}, model=ModelConfig(name="nets:plain_net"))
    replay = replay_of(trainer)
    net, stepper = trainer.parts.model, trainer.parts.stepper
    parts = []
    for one in replay._passes:
        with stepper.frozen():
            parts.append(
                stepper.forward(
                    replay._share, one, lambda net, batch: (batch.inputs.clone(), batch.targets)
                )
            )
    data = [tuple(torch.cat(each) for each in zip(*parts, strict=True))]
    assert len(data[0][1]) == 75
    space = ParameterSpace(net)
    loss, params = nn.CrossEntropyLoss(), list(net.parameters())
    for kind, theirs in (
        (Hessian, curvlinops.HessianLinearOperator),
        (GaussNewton, curvlinops.GGNLinearOperator),
    ):
        vector = space.random(5)
        expected = theirs(net, loss, params, data) @ vector
        found = kind(space, replay)(vector)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.norm()))


def test_the_room_of_a_step_is_that_of_a_dense_line_search(folder: Path) -> None:
    trainer = trainer_of(
        folder,
        {"name": "step_room"},
        optim=OptimConfig(lr=0.4, momentum=0.9),
        schedule=ScheduleConfig(length=Duration.parse("4st"), curve="constant"),
    )
    model, probe = trainer.parts.model, trainer.panel.find(StepRoom)
    assert probe is not None
    space, found = ParameterSpace(model), []
    for share in trainer.parts.feed.shares(0):
        before = space.weights()
        trainer.step(share)
        after, replay = space.weights(), trainer.parts.stepper.replay
        assert replay is not None
        space.set(before)
        start, first = replay.loss(), 0
        for spacing in (0.2, 0.01):  # densely, around the first crossing
            for number in range(first + 1, first + 400):
                space.set(torch.lerp(before, after, number * spacing))
                if replay.loss() > start:
                    break
            first = (number - 1) * round(spacing / 0.01)
        space.set(after)
        found.append((probe._rooms[-1], number * spacing))
    assert len(found) == 4
    for room, searched in found:
        assert room == pytest.approx(searched, rel=0.02, abs=0.01)


@pytest.mark.parametrize(
    ("model", "ranks", "engine"),
    [
        pytest.param("normed", 2, "ddp", marks=pytest.mark.slow),
        pytest.param("plain_net", 3, "ddp", marks=[pytest.mark.slow, pytest.mark.long]),
        pytest.param("normed", 3, "ddp", marks=pytest.mark.slow),
        pytest.param("plain_net", 2, "fsdp", marks=[pytest.mark.slow, pytest.mark.long]),
        pytest.param("normed", 2, "fsdp", marks=pytest.mark.slow),
    ],
)
def test_the_same_on_any_ranks_and_engines(
    model: str, ranks: int, engine: str, folder: Path, train: Any
) -> None:
    """Ghosts of 10 in a batch of 75: shares of 40 and 35, of 30, 25 and 20."""
    probes = (
        "--probes=["
        "{name: curvature, every: 2st, top: 2, products: 6, measure: 'steps,gauss_newton'},"
        "{name: step_room, every: 2st}, {name: sharpness, every: 2st},"
        "{name: spectrum, every: 2st, products: 4}]"
    )
    options = [f"--model.name=nets:{model}", "--data.limit=300", "--batch.size=75", probes]
    options += ["--norm.kind=ghost", "--norm.ghost_size=10", "--schedule.length=4st"]
    options += ["--precision.compute=fp64", "--optim.lr=0.05", "--data.workers=0"]
    path = f"{folder}:{Path(__file__).parent.parent.parent}"
    lines = []
    for name, count, kind in (("alone", 1, "ddp"), ("several", ranks, engine)):
        run = train(name, *options, f"--distributed.engine={kind}", nproc=count, PYTHONPATH=path)
        lines.append([line for line in run.lines("train") if "curvature" in line])
    starts = ("curv", "step_room", "sharp", "hess", "gradient_in")
    keys = [key for key in lines[0][0] if key.startswith(starts)]
    assert [len(each) for each in lines] == [2, 2] and len(keys) >= 12
    for one, other in zip(*lines, strict=True):
        for key in keys:
            assert other[key] == pytest.approx(one[key], rel=2e-5, abs=1e-9), key


def test_an_engine_that_cannot_repeat_a_step_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from largebatch.engine.ddp import DataParallel

    monkeypatch.setattr(DataParallel, "repeats", False)
    with pytest.raises(UserError, match="probes: step_room takes a step's passes once more") as why:
        trainer_of(folder, {"name": "step_room"}, distributed=DistributedConfig(engine="ddp"))
    assert "\n" not in str(why.value)


@pytest.mark.parametrize(
    ("probe", "said"),
    [
        ({"name": "curvature", "top": 0}, "top=0"),
        ({"name": "curvature", "top": 5, "products": 3}, "products=3"),
        ({"name": "curvature", "measure": "plain,hess"}, "measure='plain,hess'"),
        ({"name": "sharpness", "box": "round"}, "box='round'"),
        ({"name": "sharpness", "epsilon": 0}, "epsilon=0"),
        ({"name": "sharpness", "steps": 0}, "steps=0"),
        ({"name": "spectrum", "products": 0}, "products=0"),
        ({"name": "tail_index", "block": 3}, "tail_index has no such option"),
    ],
)
def test_options_out_of_range(probe: dict[str, Any], said: str, folder: Path) -> None:
    with pytest.raises(UserError) as error:
        trainer_of(folder, probe)
    assert "probes[0]" in str(error.value) and said in str(error.value)


def test_a_gradient_that_is_not_finite_has_no_curvature(folder: Path) -> None:
    trainer = trainer_of(folder, {"name": "curvature"}, optim=OptimConfig(lr=1e300))
    for share in trainer.parts.feed.shares(0):
        trainer.step(share)
    probe = trainer.panel.find(Curvature)
    assert probe is not None and all(math.isfinite(v) for v in probe._last.values())


def on_full_batches(folder: Path, probe: dict[str, Any], steps: int, **sections: Any) -> Any:
    """Return curvature x rate of 500 digits in one batch, measurement by measurement."""
    trainer = trainer_of(
        folder,
        {"name": "curvature", **probe},
        model=ModelConfig(name="nets:deep_net"),
        data=DataConfig(limit=500, augment="none"),
        batch=BatchConfig(size=500),
        schedule=ScheduleConfig(length=Duration(steps, "st"), curve="constant"),
        precision=PrecisionConfig(compute="fp32"),
        evaluate=EvaluateConfig(every=Duration(5000, "st")),
        **sections,
    )
    found: list[dict[str, Any]] = []
    assert trainer.run([Kept(found)])
    return [v["curvature_times_rate"] for v in found if "curvature_times_rate" in v]


@pytest.mark.slow
def test_full_batches_train_at_the_edge_of_stability(folder: Path) -> None:
    """Cohen et al. 2021: on the whole set, curvature x rate climbs to 2 while the loss is high."""
    sgd = OptimConfig(name="sgd", lr=0.5, momentum=0.0, weight_decay=0.0)
    values = on_full_batches(folder, {"every": "4st", "products": 6}, 52, optim=sgd)
    assert values[0] < 1.5, values
    assert 1.8 <= values[-1] <= 2.3 and 1.8 <= sorted(values[3:])[len(values[3:]) // 2] <= 2.5


@pytest.mark.slow
def test_adam_on_full_batches_trains_at_its_own_edge(folder: Path) -> None:
    """Cohen et al. 2022: in Adam's coordinates curvature x rate climbs to 38 and stays there."""
    adam = OptimConfig(name="adamw", lr=0.01, weight_decay=0.0, betas=(0.9, 0.99))
    smooth = ClassificationConfig(label_smoothing=0.1)
    probe = {"every": "20st", "products": 8}
    values = on_full_batches(folder, probe, 1200, optim=adam, task=smooth)
    assert max(values[:10]) < 20, values
    end = sorted(values[-20:])
    assert end[2] >= 30 and end[-3] <= 46 and 34 <= end[10] <= 42, end


class Kept:
    """Takes the lines of a run."""

    def __init__(self, lines: list[dict[str, Any]]) -> None:
        self._lines = lines

    def write(self, record: dict[str, Any]) -> None:
        self._lines.append(record)

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass
