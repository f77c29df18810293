"""Runs that end when the loss no longer falls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from largebatch._errors import UserError
from largebatch.data import DataConfig
from largebatch.optim import OptimConfig
from largebatch.processes import World
from largebatch.processes.lifetime import StopRequest
from largebatch.record import RunDirectory
from largebatch.schedule import BatchConfig, Duration, ScheduleConfig
from largebatch.train.build import build
from largebatch.train.config import Config, TelemetryConfig
from largebatch.train.plateau import Plateau
from largebatch.train.trainer import Trainer


class At:
    """An evaluation."""

    def __init__(self, loss: float, samples: int, split: str = "val") -> None:
        self.record = {"split": split, "loss": loss, "samples": samples}
        self.finished: dict[str, float] | None = None

    def finish(self, why: dict[str, float]) -> None:
        self.finished = why


def ends(probe: Plateau, *losses: float) -> int | None:
    """Return the number of the evaluation, 100 samples apart, at which the run ends."""
    for number, loss in enumerate(losses, 1):
        at: Any = At(loss, 100 * number)
        probe.measure(at)
        if at.finished is not None:
            return number
    return None


def test_it_ends_a_run_whose_loss_has_set_no_new_low() -> None:
    assert ends(Plateau(200), 3.0, 2.0, 1.0, 1.5, 1.0) == 5
    assert ends(Plateau(200), 3.0, 2.0, 2.5, 1.9, 2.5, 1.8) is None
    probe = Plateau(200)
    at: Any = At(1.0, 100)
    probe.measure(at)
    other: Any = At(9.0, 900, "also")
    probe.measure(other)
    assert other.finished is None
    late: Any = At(2.0, 300)
    probe.measure(late)
    assert late.finished == {"loss": 1.0}


def test_it_goes_on_with_the_run() -> None:
    first, again = Plateau(300), Plateau(300)
    assert first.state() == {}
    again.check({})
    again.load({})
    assert ends(first, 2.0, 1.0) is None
    again.check(first.state())
    again.load(first.state())
    assert again.state() == {"lowest": 1.0, "since": 200.0}
    for wrong in (None, {"lowest": 1.0}, {"lowest": "1", "since": 0.0}):
        with pytest.raises(ValueError, match="no lowest loss"):
            again.check(wrong)


def test_a_run_that_learns_nothing_ends_before_its_length(tmp_path: Path) -> None:
    schedule = {"length": Duration.parse("9ep"), "curve": "constant", "stop": "plateau"}
    config = Config(
        data=DataConfig(limit=64),
        batch=BatchConfig(size=32),
        optim=OptimConfig(lr=0.0),
        schedule=ScheduleConfig(patience=Duration.parse("3ep"), **schedule),
        telemetry=TelemetryConfig(hardware_every=0.0),
    )
    config.model.name = "f1"
    config.norm.kind = "none"
    directory = RunDirectory(tmp_path)
    directory.create()
    trainer = Trainer(config, build(config, World(), torch.device("cpu")), directory, StopRequest())
    assert trainer.run()
    assert trainer.position.samples == 4 * 64  # the low of the first epoch, and three after it
    reached = trainer.position.reached
    assert reached is not None and reached["loss"] > 0


def test_no_patience_is_refused() -> None:
    with pytest.raises(UserError, match=r"schedule.patience=0ep: more than 0"):
        ScheduleConfig(patience=Duration.parse("0ep")).check()
