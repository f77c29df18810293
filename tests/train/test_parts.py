"""The trainer's smaller parts, in this process."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from largebatch._errors import UserError
from largebatch.data import DataConfig
from largebatch.models import ModelConfig
from largebatch.nn import NormConfig
from largebatch.processes import World
from largebatch.processes.lifetime import StopRequest
from largebatch.record import RunDirectory
from largebatch.schedule import BatchConfig, Duration, ScheduleConfig
from largebatch.schedule.config import PhaseConfig
from largebatch.train.build import build
from largebatch.train.config import Config, PrecisionConfig
from largebatch.train.evaluate import evaluating
from largebatch.train.micro import halved, is_out_of_memory
from largebatch.train.precision import Precision
from largebatch.train.trainer import Trainer

CPU = torch.device("cpu")


def small(**sections: object) -> Config:
    return Config(
        data=DataConfig(limit=200),
        batch=BatchConfig(size=64),
        schedule=ScheduleConfig(length=Duration.parse("2ep")),
        **sections,  # type: ignore[arg-type]
    )


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_evaluation_changes_nothing():
    torch.manual_seed(0)
    parts = build(small(model=ModelConfig(drop=0.3)), World(), CPU)
    next(m for m in parts.model.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    parts.model.zero_grad()
    steps = parts.feed.shares(0)
    share = next(steps)
    parts.stepper.run(share, stop=False)
    before = snapshot(parts.model)
    flags = [m.training for m in parts.model.modules()]
    assert True in flags and False in flags
    gradients = [p.grad.clone() for p in parts.model.parameters()]
    generator = torch.default_generator.get_state()
    sums = parts.evaluator.sums(parts.model)
    assert sums[-1] == len(parts.validation)
    assert [m.training for m in parts.model.modules()] == flags
    assert torch.equal(torch.default_generator.get_state(), generator)
    assert all(map(torch.equal, before.values(), parts.model.state_dict().values()))
    assert all(map(torch.equal, gradients, (p.grad for p in parts.model.parameters())))


def test_evaluation_restores_after_an_error():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())

    def fail() -> None:
        assert not any(m.training for m in model.modules())
        raise KeyError

    precision = Precision(PrecisionConfig(), CPU)
    with pytest.raises(KeyError), evaluating(model, CPU, precision):
        fail()
    assert all(m.training for m in model.modules())


def test_an_overflow_under_fp16_changes_no_state():
    parts = build(small(precision=PrecisionConfig(compute="fp16")), World(), CPU)
    steps = parts.feed.shares(0)
    share = next(steps)
    parts.stepper.run(share, stop=False)
    before = copy.deepcopy(
        {"model": dict(parts.model.named_parameters()), "optimizer": parts.optimizer.state_dict()}
    )
    scaler = parts.precision.scaler
    assert scaler is not None
    scale = scaler.get_scale()
    hook = next(parts.model.parameters()).register_hook(lambda g: g * float("inf"))
    share = next(steps)
    parts.stepper.run(share, stop=False)
    hook.remove()
    assert scaler.get_scale() < scale
    for name, parameter in parts.model.named_parameters():
        assert torch.equal(parameter, before["model"][name])
    assert same_state(parts.optimizer.state_dict(), before["optimizer"])
    share = next(steps)
    parts.stepper.run(share, stop=False)
    assert not torch.equal(next(parts.model.parameters()), next(iter(before["model"].values())))


def same_state(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)  # type: ignore[arg-type]
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_state(a[k], b[k]) for k in a)  # type: ignore
    if isinstance(a, (list, tuple)):
        return all(map(same_state, a, b))  # type: ignore[arg-type]
    return a == b


def test_fp64_is_for_cpu():
    assert Precision(PrecisionConfig(compute="fp64"), CPU).dtype == torch.float64
    with pytest.raises(UserError, match=r"precision\.compute='fp64'.*CPU"):
        Precision(PrecisionConfig(compute="fp64"), torch.device("cuda"))


def test_auto_takes_whole_ghosts_and_no_more_than_the_share(monkeypatch):
    from largebatch.train import build as module

    config = small(norm=NormConfig(kind="ghost", ghost_size=16))
    config.batch.micro = "auto"
    assert build(config, World(), CPU).feed.fitting == {None: 64}
    monkeypatch.setattr(module, "memory_free", lambda *_: 2_000_000)
    micro = build(config, World(), CPU).feed.fitting[None]
    assert 16 <= micro < 64 and micro % 16 == 0
    monkeypatch.setattr(module, "memory_free", lambda *_: 1)
    assert build(config, World(), CPU).feed.fitting == {None: 16}


def test_auto_of_a_phase_is_measured_at_the_size_of_its_images(monkeypatch):
    """It counted only where batch.micro was auto as well, and at the validation images' size."""
    from largebatch.train import build as module

    config = small(norm=NormConfig(kind="ghost", ghost_size=16))
    config.model.name = "cifar_resnet20"
    config.batch.plan = [
        PhaseConfig(until=Duration.parse("1ep"), extent=8, micro="auto"),
        PhaseConfig(extent=16, micro="auto"),
    ]
    monkeypatch.setattr(module, "memory_free", lambda *_: 8_000_000)
    feed = build(config, World(), CPU).feed
    small_images, large_images = feed.fitting[8], feed.fitting[16]
    assert large_images < small_images < 64  # four times the pixels, a quarter of the samples
    assert [feed.micro(feed.plan.step_at(at)) for at in (0, 200)] == [small_images, large_images]


def test_backing_off_halves_in_whole_ghosts():
    assert [halved(m, 16) for m in (160, 64, 48, 32, 16, None)] == [80, 32, 16, 16, None, None]
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def test_a_run_that_meets_the_end_of_memory_goes_on_with_smaller_passes(tmp_path, capsys):
    """A step that runs out of memory is taken again; the trajectory is as if it never had."""
    finals = []
    for limit in (10_000, 40):
        config = small(
            norm=NormConfig(kind="ghost", ghost_size=16),
            precision=PrecisionConfig(compute="fp64"),
        )
        config.batch.micro = "auto"
        parts = build(config, World(), CPU)
        train = parts.stepper.train

        def limited(model, batch, train=train, limit=limit):
            loss = train(model, batch)  # the forward pass has left its traces in the norms
            if len(batch) > limit:
                raise torch.OutOfMemoryError("out of memory")
            return loss

        parts.stepper.train = limited
        directory = RunDirectory(tmp_path / str(limit))
        directory.create()
        trainer = Trainer(config, parts, directory, StopRequest())
        assert trainer.run(())
        assert trainer.position.samples == 400 and trainer.position.steps == 8
        finals.append((parts.feed.fitting[None], parts.model.state_dict()))
    assert [micro for micro, _ in finals] == [64, 32]
    assert "batch.micro 64 -> 32" in capsys.readouterr().out
    for name, tensor in finals[0][1].items():
        torch.testing.assert_close(finals[1][1][name], tensor, rtol=1e-9, atol=1e-12, msg=name)
