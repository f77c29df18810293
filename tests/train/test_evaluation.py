"""Evaluations: when they come, what they are called, and one that a signal cuts short."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from largebatch._errors import UserError
from largebatch.cli import main
from largebatch.data import DataConfig
from largebatch.probes import evaluations, short_name
from largebatch.processes import World
from largebatch.processes.lifetime import StopRequest
from largebatch.record import MetricsWriter, RunDirectory, TensorBoardMirror, read_metrics
from largebatch.schedule import BatchConfig, Duration, ScheduleConfig
from largebatch.tasks import ContrastiveConfig
from largebatch.train import checkpoint
from largebatch.train.build import build
from largebatch.train.check import check
from largebatch.train.config import Config, EvaluateConfig, TelemetryConfig
from largebatch.train.trainer import Trainer

OWN = """
stop = None

def again(task, world, at=0):
    calls = []

    def run(model):
        calls.append(None)
        if len(calls) == at:
            stop._handle(15, None)
        return {"calls": len(calls), "loss": 1.5}

    return run

def broken(nothing_of_that_name):
    pass

def silent():
    return None
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make ``OWN`` importable as ``judges``."""
    (tmp_path / "judges.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("judges", None)


def config_of(every: str = "1ep", *also: dict[str, Any], length: str = "2ep") -> Config:
    """Return a run of six steps an epoch."""
    return Config(
        data=DataConfig(limit=330),
        batch=BatchConfig(size=64),
        schedule=ScheduleConfig(length=Duration.parse(length)),
        evaluate=EvaluateConfig(every=Duration.parse(every), also=list(also)),
        telemetry=TelemetryConfig(hardware_every=0.0),
    )


def trainer_of(config: Config, folder: Path, stop: Any = None) -> Trainer:
    directory = RunDirectory(folder)
    directory.create()
    parts = build(config, World(), torch.device("cpu"))
    stop = StopRequest() if stop is None else stop  # one that is not set is false
    return Trainer(config, parts, directory, stop)


def lines_of(trainer: Trainer) -> list[dict[str, Any]]:
    """Train and return the lines of evaluations."""
    writer = MetricsWriter(trainer.directory.metrics)
    trainer.run((writer, TensorBoardMirror(trainer.directory.tensorboard)))
    writer.close()
    lines = read_metrics(trainer.directory.metrics)
    return [line for line in lines if line["split"] in ("val", "also")]


@pytest.mark.parametrize(
    ("every", "length", "steps"),
    [
        ("1ep", "2ep", [6, 12]),
        ("7st", "2ep", [7, 12]),
        ("100sa", "1ep", [2, 4, 5, 6]),
        ("1ep", "0.8ep", [5]),
        ("50%", "0.5ep", [2, 3]),
        ("9ep", "4st", [4]),
    ],
)
def test_they_come_as_often_as_they_are_asked_for_and_at_the_end(
    every: str, length: str, steps: list[int], tmp_path: Path
) -> None:
    lines = lines_of(trainer_of(config_of(every, length=length), tmp_path))
    assert [line["step"] for line in lines] == steps


def test_a_further_one_has_its_name_before_its_figures(tmp_path: Path) -> None:
    also = {"name": "judges:again", "every": "4st"}
    lines = lines_of(trainer_of(config_of("6st", also), tmp_path))
    assert [(line["split"], line["step"]) for line in lines] == [
        ("also", 4), ("val", 6), ("also", 8), ("val", 12)
    ]  # fmt: skip
    assert [line.get("again_calls") for line in lines] == [1, None, 2, 3]
    assert "again_loss" in lines[0] and "loss" not in lines[0]
    assert lines[3]["again_loss"] == 1.5 and lines[3]["loss"] != 1.5
    assert {"weight_norm", "weight_distance", "count"} <= lines[1].keys()
    trainer = trainer_of(config_of("4st", {"name": "judges:again"}), tmp_path / "as_often")
    assert [line["again_calls"] for line in lines_of(trainer)] == [1, 2, 3]


OF_FEATURES = ("knn", "linear")  # which classification does not give


@pytest.mark.parametrize("name", [*evaluations.names(), "judges:again"])
def test_every_further_one_is_taken_and_changes_nothing(name: str, tmp_path: Path) -> None:
    configs = {
        "with": config_of("1ep", {"name": name, "every": "2st"}),
        "without": config_of("1ep"),
    }
    if name in OF_FEATURES:
        for config in configs.values():
            config.task = ContrastiveConfig("contrastive")
            config.data.augment = "views"
    runs = {case: trainer_of(config, tmp_path / case) for case, config in configs.items()}
    lines = {case: lines_of(trainer) for case, trainer in runs.items()}
    head = f"{short_name(name)}_"
    assert all(any(key.startswith(head) for key in line) for line in lines["with"])
    assert [line["step"] for line in lines["with"]] == [2, 4, 6, 8, 10, 12]
    weights, others = (trainer.parts.model.state_dict() for trainer in runs.values())
    assert all(torch.equal(tensor, others[key]) for key, tensor in weights.items())


@pytest.mark.parametrize("call", [1, 2])
def test_one_that_a_signal_cuts_short_is_thrown_away_and_taken_again(
    call: int, tmp_path: Path
) -> None:
    import judges

    judges.stop = StopRequest()
    also = {"name": "judges:again", "at": call}
    trainer = trainer_of(config_of("1ep", also), tmp_path, judges.stop)
    assert [line["step"] for line in lines_of(trainer)] == [6, 12][: call - 1]
    assert (trainer.position.steps, trainer.position.evaluated) == (6 * call, 330 * (call - 1))
    path = checkpoint.newest_valid(trainer.directory.checkpoints, print)
    assert path is not None
    again = trainer_of(config_of("1ep", {"name": "judges:again"}), tmp_path / "again")
    again.resume(checkpoint.load(Path(path)))
    assert [line["step"] for line in lines_of(again)] == [6, 12][call - 1 :]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--evaluate.every=0st"], "evaluate.every=0st: more than 0"),
        (["--evaluate.also=[{every: 1ep}]"], "evaluate.also[0]={'every': '1ep'}: a mapping"),
        (["--evaluate.also=[{name: nosuch}]"], "evaluate.also[0].name='nosuch': choose from"),
        (["--evaluate.also=[{name: 'judges:again', every: soon}]"],
         "evaluate.also[0].every='soon': duration 'soon'"),
        (["--evaluate.also=[{name: 'judges:again', depth: 3}]"],
         "evaluate.also[0].depth: judges:again has no such option; there are at"),
        (["--evaluate.also=[{name: 'judges:broken'}]"],
         "evaluate.also[0].nothing_of_that_name is missing: judges:broken needs it"),
        (["--probes=[{name: 'nosuch'}]"], "probes[0].name='nosuch': choose from"),
        (["--probes=[{every: 1ep}]"], "probes[0]={'every': '1ep'}: a mapping"),
        (["--probes=[{name: 'judges:silent', every: 3}]"], "probes[0].every=3: duration 3"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_before_any_work(
    options: list[str], said: str, tmp_path: Path, capsys: Any
) -> None:
    assert main(["train", f"--run.dir={tmp_path / 'run'}", *options]) == 2
    assert capsys.readouterr().err.startswith(f"largebatch: {said}")
    assert not (tmp_path / "run").exists()


def test_two_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "ema_judge.py").write_text("def ema():\n    return lambda model: {}\n")
    with pytest.raises(UserError, match="the run has one of that name"):
        check(config_of("1ep", {"name": "ema_judge:ema"}))
    with pytest.raises(UserError, match="nothing to call with a model"):
        trainer_of(config_of("1ep", {"name": "judges:silent"}), tmp_path / "run")
