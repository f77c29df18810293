"""Averages of a run by half-lives in samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from largebatch._errors import UserError
from largebatch.data import DataConfig
from largebatch.nn import NormConfig, keep_running
from largebatch.optim import OptimConfig
from largebatch.processes import World
from largebatch.processes.lifetime import StopRequest
from largebatch.record import RunDirectory
from largebatch.schedule import BatchConfig, Duration, ScheduleConfig
from largebatch.train.build import build
from largebatch.train.check import check
from largebatch.train.config import Config, EmaConfig, PrecisionConfig, TelemetryConfig
from largebatch.train.trainer import Trainer


def trainer_of(folder: Path, **sections: Any) -> Trainer:
    config = Config(
        **{
            "data": DataConfig(limit=330),
            "batch": BatchConfig(size=64),
            "norm": NormConfig(kind="ghost", ghost_size=16, half_life=Duration.parse("300sa")),
            "optim": OptimConfig(lr=1e-30, momentum=0.0),
            "schedule": ScheduleConfig(length=Duration.parse("2ep")),
            "telemetry": TelemetryConfig(hardware_every=0.0),
            "precision": PrecisionConfig(compute="fp64"),
            **sections,
        }
    )
    check(config)
    directory = RunDirectory(folder)
    directory.create()
    return Trainer(config, build(config, World(), torch.device("cpu")), directory, StopRequest())


@pytest.mark.parametrize("running", ["sequential", "averaged"])
@pytest.mark.parametrize("size", [32, 128])
def test_running_statistics_forget_by_samples(running: Any, size: int, tmp_path: Path) -> None:
    """What was there at the start is worth 2^(-samples / half-life), the short steps included."""
    half_life = Duration.parse("300sa")
    norm = NormConfig(kind="ghost", ghost_size=16, running=running, half_life=half_life)
    ends = []
    for start in (0.0, 1000.0):
        trainer = trainer_of(tmp_path / str(start), norm=norm, batch=BatchConfig(size=size))
        first = next(m for m in trainer.parts.model.modules() if hasattr(m, "running_mean"))
        first.running_mean.fill_(start)
        assert trainer.run()
        ends.append(first.running_mean.clone())
    kept = (ends[1] - ends[0]) / 1000
    assert torch.allclose(kept, torch.full_like(kept, 2.0 ** (-660 / 300)), rtol=1e-9)


def test_torchs_batch_norm_forgets_alike_over_passes() -> None:
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3, momentum=None)).double()
    model[0].running_mean.fill_(1000.0)
    for samples, passes in ((64, 1), (96, 3)):
        keep_running(model, 2.0 ** (-samples / 100), ghosts=7, passes=passes)
        for _ in range(passes):
            model(torch.zeros(4, 3).double())
    assert model[0].running_mean.tolist() == pytest.approx([1000 * 2.0 ** (-160 / 100)] * 3)


NINETY = Duration.parse("90sa")
GHOSTS = NormConfig(kind="ghost", ghost_size=16)
SHORT: dict[str, dict[str, Any]] = {
    "norm.half_life=90sa": {"norm": NormConfig(kind="ghost", ghost_size=16, half_life=NINETY)},
    "ema.half_life=90sa": {"ema": EmaConfig(half_life=NINETY), "norm": GHOSTS},
    "optim.beta2_half_life=90sa": {
        "optim": OptimConfig(name="adam", beta2_half_life=NINETY),
        "norm": GHOSTS,
    },
    "optim.scaling=sde of optim.betas=[0.9, 0.999]": {
        "batch": BatchConfig(size=320, reference=8),
        "optim": OptimConfig(name="adam", scaling="sde"),
        "norm": GHOSTS,
    },
}


@pytest.mark.parametrize("said", SHORT)
def test_an_average_shorter_than_a_step_is_refused_by_name(said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        trainer_of(tmp_path, **{"batch": BatchConfig(size=320), **SHORT[said]})
    text = str(error.value)
    assert text.startswith(f"{said}: a step of 320 samples would leave ") and "\n" not in text
    assert "a half-life of at least 97sa" in text


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"momentum": 0.1}, r"norm\.half_life=1ep: takes the place of norm\.momentum"),
        ({"running": "last"}, r"norm\.half_life=1ep: no effect with norm\.running=last"),
        ({"kind": "layer", "ghost_size": None}, r"norm\.half_life=1ep: no effect with norm\.kind"),
    ],
)
def test_a_half_life_without_an_average_says_so(keys: Any, said: str, tmp_path: Path) -> None:
    given = {"kind": "ghost", "ghost_size": 16, "half_life": Duration.parse("1ep"), **keys}
    with pytest.raises(UserError, match=said):
        trainer_of(tmp_path, norm=NormConfig(**given))
