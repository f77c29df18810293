"""A batch that grows by the run's own noise scale: it replays, resumes, and goes to other ranks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from largebatch._errors import UserError
from largebatch.data import DataConfig
from largebatch.nn import NormConfig
from largebatch.optim import OptimConfig
from largebatch.processes import World
from largebatch.processes.lifetime import StopRequest
from largebatch.record import MetricsWriter, RunDirectory, read_metrics
from largebatch.schedule import BatchConfig, Duration, PhaseConfig, ScheduleConfig
from largebatch.train import checkpoint, parse
from largebatch.train.build import build
from largebatch.train.check import check
from largebatch.train.config import CheckpointConfig, Config, PrecisionConfig, TelemetryConfig
from largebatch.train.moments import PhaseMoments
from largebatch.train.trainer import Trainer


def grows(**keys: Any) -> BatchConfig:
    given = {
        "size": 8,
        "micro": 4,
        "control": "noise",
        "max": 64,
        "noise_every": Duration.parse("1st"),
    }
    return BatchConfig(**{**given, **keys})


def trainer_of(folder: Path, **sections: Any) -> Trainer:
    config = Config(
        **{
            "data": DataConfig(limit=330),
            "batch": grows(),
            "norm": NormConfig(kind="group", groups=1),
            "optim": OptimConfig(name="adamw", lr=1e-3, scaling="sqrt"),
            "schedule": ScheduleConfig(length=Duration.parse("5ep")),
            "telemetry": TelemetryConfig(hardware_every=0.0),
            "checkpoint": CheckpointConfig(every=Duration.parse("100sa"), keep=100),
            "precision": PrecisionConfig(compute="fp64"),
            **sections,
        }
    )
    return of_config(config, folder)


def of_config(config: Config, folder: Path) -> Trainer:
    check(config)
    directory = RunDirectory(folder)
    directory.create()
    return Trainer(config, build(config, World(), torch.device("cpu")), directory, StopRequest())


def trained(trainer: Trainer) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Run to the end; return the weights, and the lines without times and noise."""
    writer = MetricsWriter(trainer.directory.metrics)
    assert trainer.run((writer,))
    writer.close()
    lines = [
        {key: v for key, v in line.items() if "second" not in key and "noise" not in key}
        for line in read_metrics(trainer.directory.metrics)
    ]
    return {name: t.clone() for name, t in trainer.parts.model.state_dict().items()}, lines


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("grown")
    trainer = trainer_of(folder)
    return (trainer, *trained(trainer))


def test_the_batch_grows_once_the_noise_scale_is_surely_above_it(grown: Any) -> None:
    trainer, _, lines = grown
    sizes = [line["batch_size"] for line in lines if line["split"] == "train"]
    assert sizes[0] == 8 and max(sizes) >= 16
    changes = trainer.control.changes
    assert [change["size"] for change in changes] == [16, 32, 64][: len(changes)]
    for change in changes:
        assert set(change["second_moment"]) == {
            "*",
            *(name for name, _ in trainer.parts.model.named_parameters()),
        }
        assert all(0.5 <= factor <= 1.0 for factor in change["second_moment"].values())
    rates = {line["batch_size"]: line["lr"] for line in lines if line["split"] == "train"}
    first = next(line["lr"] for line in lines if line["split"] == "train")
    assert rates[16] < first * math.sqrt(2) * 1.0001
    plan = trainer.schedule.plan
    assert trainer.position.steps == plan.total_steps


def test_its_plan_replays_the_run_to_the_bit(grown: Any, tmp_path: Path) -> None:
    trainer, weights, lines = grown
    trainer.directory.write_config(parse.dump(trainer.config))
    overrides = [f"--config={trainer.directory.batch_plan}"]
    config = parse.read_config(trainer.directory.config, overrides)
    assert config.batch.control == "none" and len(config.batch.plan) >= 2
    again = of_config(config, tmp_path)
    assert again.control is None
    replayed, their_lines = trained(again)
    assert replayed.keys() == weights.keys()
    assert all(torch.equal(replayed[name], tensor) for name, tensor in weights.items())
    assert their_lines == lines


def test_it_goes_on_from_any_checkpoint_as_if_never_stopped(grown: Any, tmp_path: Path) -> None:
    trainer, weights, _ = grown
    at = trainer.control.changes[0]["at"]
    saved = sorted(trainer.directory.checkpoints.glob("samples-*"))
    before = [path for path in saved if int(path.name[8:]) < at][-1]
    after = next(path for path in saved if int(path.name[8:]) >= at)
    for path in (before, after):
        again = trainer_of(tmp_path / path.name)
        again.resume(checkpoint.load(path))
        assert len(again.control.changes) == (path is after)
        assert again.run()
        assert again.control.changes == trainer.control.changes
        found = again.parts.model.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())
        assert again.directory.batch_plan.read_text() == trainer.directory.batch_plan.read_text()


def test_a_change_is_no_more_than_the_phase_says(grown: Any) -> None:
    """The moments change at the phase's first step, once, however often it is tried."""
    trainer = grown[0]
    phase = trainer.schedule.plan.phases[1]
    start = trainer.schedule.plan.phases[0].end
    step = trainer.schedule.plan.step_at(start)
    param, state = next(iter(trainer.parts.optimizer.state.items()))
    names = {id(p): name for name, p in trainer.parts.model.named_parameters()}
    factor = dict(phase.second_moment)[names[id(param)]]
    held = state["exp_avg_sq"].clone()
    parts = trainer.parts
    moments = PhaseMoments(parts.schedule, parts.optimizer, parts.model)
    for _ in range(2):
        moments.enter(step)
        assert torch.equal(state["exp_avg_sq"], held * factor)
    moments.enter(trainer.schedule.plan.step_at(step.end))
    assert torch.equal(state["exp_avg_sq"], held * factor)


REFUSED = {
    "batch.size=24: batch.control=noise grows by whole ghosts of 16 samples": {
        "batch": grows(size=24, micro=None),
        "norm": NormConfig(kind="ghost", ghost_size=16),
    },
    "batch.control=noise: nothing to measure a noise scale by": {
        "batch": grows(micro=None),
        "norm": NormConfig(kind="batch"),
    },
    "batch.control=noise: a step of 8 samples is one pass, with nothing to compare": {
        "batch": grows(micro=8),
        "norm": NormConfig(kind="batch"),
    },
    "probes: noise: batch.control=noise measures it": {"probes": [{"name": "noise"}]},
    "batch.control=noise: makes the plan; leave out batch.plan": {
        "batch": grows(plan=[PhaseConfig(size=8)]),
    },
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_cannot_be_controlled_says_so_by_name(said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        trainer_of(tmp_path, **REFUSED[said])
    assert str(error.value).startswith(said) and "\n" not in str(error.value)


@pytest.mark.slow
def test_two_ranks_decide_alike_and_one_goes_on(train: Any, begin: Any) -> None:
    options = ["--data.limit=330", "--batch.size=8", "--batch.control=noise", "--batch.max=64"]
    options += ["--batch.micro=4", "--batch.noise_every=1st", "--norm.kind=group"]
    options += ["--norm.groups=1", "--schedule.length=5ep", "--precision.compute=fp64"]
    options += ["--optim.name=lamb", "--optim.lr=0.005", "--checkpoint.every=100sa"]
    whole = train("whole", *options, nproc=2)
    plan = (whole.directory / "batch_plan.yaml").read_text()
    assert plan.count("size:") >= 2
    run = begin("stopped", *options, nproc=2)
    run.wait_for(lambda: run.steps() >= 60, "step 60")
    run.process.kill()
    run.end()
    killed = train("stopped", *options, nproc=2)
    assert killed.summary["weights_sha256"] == whole.summary["weights_sha256"]
    assert (killed.directory / "batch_plan.yaml").read_text() == plan
    run = begin("moved", *options, nproc=2)
    run.wait_for(lambda: run.steps() >= 110, "step 110")
    run.process.terminate()
    run.end()
    begun = (run.directory / "batch_plan.yaml").read_text().splitlines()
    moved = train("moved", *options, nproc=1)
    after = (moved.directory / "batch_plan.yaml").read_text().splitlines()
    assert after[: len(begun) - 1] == begun[:-1] or begun == after[: len(begun)]
