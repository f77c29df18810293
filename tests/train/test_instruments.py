"""Instruments see the run and change no bit of it; what they have seen goes on with it."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from largebatch._errors import UserError
from largebatch.data import DataConfig
from largebatch.engine import DistributedConfig
from largebatch.nn import NormConfig
from largebatch.optim import OptimConfig
from largebatch.probes import MOMENTS, Instrument, Panel, WeightDistance, probes
from largebatch.processes import World
from largebatch.processes.lifetime import StopRequest
from largebatch.record import MetricsWriter, RunDirectory, TensorBoardMirror, read_metrics
from largebatch.schedule import BatchConfig, Duration, ScheduleConfig
from largebatch.train import checkpoint
from largebatch.train import trainer as module
from largebatch.train.build import build
from largebatch.train.config import (
    CheckpointConfig,
    Config,
    EmaConfig,
    RunConfig,
    SnapshotConfig,
    TelemetryConfig,
)
from largebatch.train.trainer import Trainer

CPU = torch.device("cpu")
STEP = Duration.parse("1st")

OWN = '''
import torch
from largebatch.probes import Instrument


class Look(Instrument):
    """Looks at everything there is, at a moment of its choice."""

    reads_squares = True

    def __init__(self, moment="stepped", ends_at=None):
        self.moment, self.ends_at, self.seen = moment, ends_at, 0

    def measure(self, at):
        self.seen += 1
        batch = at.held(16)
        loss = at.loss(batch)
        assert torch.equal(loss, at.loss(batch)), "dropout draws the same"
        params = list(at.model.parameters())
        grads = torch.autograd.grad(loss, params)
        zeros = {name: torch.zeros_like(p) for name, p in at.model.named_parameters()}
        figures = at.evaluate(zeros)
        torch.rand(5)
        if at.number == self.ends_at:
            at.finish({"seen": self.seen})
        return {
            "seen": torch.tensor(self.seen),
            "slope": sum(g.square().sum() for g in grads),
            "own": at.squares.own.sum(),
            "zeros_loss": torch.tensor(figures["loss"]),
        }

    def state(self):
        return {"seen": self.seen}

    def check(self, state):
        if not isinstance(state, dict) or not isinstance(state.get("seen"), int):
            raise ValueError("no count")

    def load(self, state):
        self.seen = state["seen"]


def neighbours(task, factor=1):
    def run(model):
        assert not model.training and not torch.is_grad_enabled()
        torch.rand(3)
        return {"figure": 0.25 * factor, "loss": 2.0}

    return run
'''


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make ``OWN`` importable as ``looks``."""
    (tmp_path / "looks.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("looks", None)


def config_of(**sections: Any) -> Config:
    """Return a run of 12 steps, of whose norms, dropout and order every bit counts."""
    return Config(
        **{
            "data": DataConfig(limit=330),
            "batch": BatchConfig(size=64, micro=32),
            "norm": NormConfig(kind="ghost", ghost_size=16),
            "optim": OptimConfig(lr=0.05),
            "schedule": ScheduleConfig(length=Duration.parse("2ep")),
            "telemetry": TelemetryConfig(hardware_every=0.0),
            "checkpoint": CheckpointConfig(every=Duration.parse("5st"), keep=99),
            **sections,
        }
    )


def trainer_of(config: Config, folder: Path) -> Trainer:
    config.model.drop = 0.1
    directory = RunDirectory(folder)
    directory.create()
    return Trainer(config, build(config, World(), CPU), directory, StopRequest())


def trained(config: Config, folder: Path) -> Trainer:
    """Train to the end, lines and all."""
    trainer = trainer_of(config, folder)
    writers = MetricsWriter(trainer.directory.metrics), TensorBoardMirror(folder / "tensorboard")
    assert trainer.run(writers)
    for writer in writers:
        writer.close()
    return trainer


def states(folder: Path) -> dict[str, torch.Tensor]:
    """Return model and optimizer of every checkpoint."""
    found = {}
    for path in sorted((folder / "checkpoints").iterdir()):
        state = checkpoint.load(path)
        kept = {part: state[part] for part in ("model", "optimizer", "scaler", "ranks")}
        _, tensors = checkpoint.flatten(kept, path.name)
        found |= tensors
    return found


# What switches each instrument of the house on, and probes at every moment.
SWITCHES: dict[str, dict[str, Any]] = {
    "checksum": {"distributed": DistributedConfig(check_every=STEP)},
    "average": {"ema": EmaConfig(half_life=Duration.parse("1ep"))},
    "snapshots": {
        "snapshot": SnapshotConfig(cycles=3),
        "schedule": ScheduleConfig(length=Duration.parse("2ep"), curve="sgdr"),
    },
    "weight_distance": {},
    "layers": {
        "optim": OptimConfig(name="lars", lr=2.0),
        "telemetry": TelemetryConfig(layers=STEP, hardware_every=0.0),
    },
    "hardware": {"telemetry": TelemetryConfig(hardware_every=0.01)},
    "target": {"run": RunConfig(target={"loss": 0.0})},
    "plateau": {"schedule": ScheduleConfig(length=Duration.parse("2ep"), stop="plateau")},
    **{
        f"looks at {moment}": {"probes": [{"name": "looks:Look", "moment": moment}]}
        for moment in MOMENTS
    },
    **{name: {"probes": [{"name": name, "every": "2st"}]} for name in probes.names()},
}


@pytest.mark.parametrize("name", SWITCHES)
def test_a_run_with_it_has_the_bits_of_a_run_without(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(**SWITCHES[name])
    whole = trained(config, tmp_path / "with")
    wanted = "looks:Look" if name.startswith("looks") else name
    assert wanted in [instrument.name for instrument in whole.panel]
    make: Callable[..., Panel] = module.build_panel
    # Snapshots set the schedule's cycles: only the instrument is to be missing.
    monkeypatch.setattr(
        module, "build_panel", lambda *a: Panel(i for i in make(*a) if i.name != wanted)
    )
    trained(copy.deepcopy(config), tmp_path / "without")
    with_it, without = states(tmp_path / "with"), states(tmp_path / "without")
    assert with_it.keys() == without.keys() and len(with_it) > 100
    for key, tensor in with_it.items():
        assert torch.equal(tensor, without[key]), key


def test_every_instrument_of_the_house_is_among_them() -> None:
    def kinds(kind: type[Instrument]) -> set[type[Instrument]]:
        below = {each for child in kind.__subclasses__() for each in {child} | kinds(child)}
        return {each for each in below if each.__module__.startswith("largebatch.")}

    registered = {entry.factory for entry in probes}
    missing = {k.name for k in kinds(Instrument) - registered} - SWITCHES.keys()
    missing -= {"batch_control"}  # it is there to change the run: test_control.py
    assert not missing, f"no test of {missing}"


def test_what_probes_find_joins_the_lines(tmp_path: Path) -> None:
    every = {"name": "looks:Look", "every": "3st"}
    trained(config_of(probes=[every]), tmp_path / "a")
    lines = read_metrics(tmp_path / "a" / "metrics.jsonl")
    seen = {line["step"]: line["seen"] for line in lines if "seen" in line}
    assert seen == {3: 1, 6: 2, 9: 3, 12: 4}
    assert all(line["split"] == "train" for line in lines if "seen" in line)
    (line,) = [line for line in lines if line["split"] == "train" and line["step"] == 6]
    assert line["zeros_loss"] == pytest.approx(2.302585, rel=1e-5) and line["slope"] > 0
    assert line["own"] > 0
    rare = TelemetryConfig(every=Duration.parse("5st"), hardware_every=0.0)
    trained(config_of(probes=[every], telemetry=rare), tmp_path / "b")
    lines = read_metrics(tmp_path / "b" / "metrics.jsonl")
    own = [line for line in lines if line["split"] == "probes" and "seen" in line]
    assert [line["step"] for line in own] == [3, 6, 9, 12]
    for moment, steps in (("evaluated", [6, 12]), ("end", [])):
        probe = {"name": "looks:Look", "moment": moment}
        trainer = trained(config_of(probes=[probe]), tmp_path / moment)
        lines = read_metrics(tmp_path / moment / "metrics.jsonl")
        assert [line["step"] for line in lines if "seen" in line] == steps
        assert trainer.position.last is not None
        assert trainer.position.last["seen"] == (2 if moment == "evaluated" else 1)


def test_a_probe_that_was_never_due_says_so(tmp_path: Path, capsys: Any) -> None:
    listed = [{"name": "curvature"}, {"name": "step_room", "every": "6st"}]
    trained(config_of(probes=listed), tmp_path)
    told = [line for line in capsys.readouterr().out.splitlines() if "none of the" in line]
    assert told == [
        "probes: curvature: none of the 12 steps of this session was measured; set every, such as"
        " every: 1st"
    ]


def test_what_they_have_seen_goes_on_with_the_run(tmp_path: Path) -> None:
    config = config_of(probes=[{"name": "looks:Look"}])
    whole = trained(config, tmp_path / "whole")
    middle = tmp_path / "whole" / "checkpoints" / f"samples-{5 * 64:012d}"
    state = checkpoint.load(middle)
    assert state["instruments"]["looks:Look"] == {"seen": 5}
    again = trainer_of(config, tmp_path / "again")
    again.resume(state)
    assert again.run()
    end = again.state.capture({})
    assert end is not None and end["instruments"]["looks:Look"] == {"seen": 12}
    expected = whole.state.capture({})
    assert expected is not None
    for name, tensor in expected["instruments"]["weight_distance"].items():
        assert torch.equal(tensor, end["instruments"]["weight_distance"][name])
    whole_way, way = (t.panel.find(WeightDistance) for t in (whole, again))
    assert whole_way is not None and way is not None
    assert way.norms() == whole_way.norms()


def test_a_run_without_their_state_begins_them_anew(tmp_path: Path) -> None:
    trained(config_of(), tmp_path / "plain")
    state = checkpoint.load(tmp_path / "plain" / "checkpoints" / f"samples-{5 * 64:012d}")
    del state["instruments"]  # as an older largebatch wrote it
    state |= {"average": None, "snapshots": None}
    trainer = trainer_of(config_of(probes=[{"name": "looks:Look"}]), tmp_path / "again")
    trainer.resume(copy.deepcopy(state))
    assert trainer.run()
    state["instruments"] = {}
    trainer_of(config_of(), tmp_path / "other").resume(state)


@pytest.mark.parametrize(
    ("instruments", "said"),
    [
        ([1], "instruments: "),
        ({"looks:Look": {"seen": "x"}}, "looks:Look: no count"),
        ({"weight_distance": {"x": torch.zeros(1)}}, "weight_distance: "),
        ({"weight_distance": 3}, "weight_distance: int is no mapping"),
    ],
)
def test_a_foreign_state_is_refused_in_one_line(
    instruments: Any, said: str, tmp_path: Path
) -> None:
    trainer = trainer_of(config_of(probes=[{"name": "looks:Look"}]), tmp_path)
    state = trainer.state.capture(vars(trainer.position))
    assert state is not None
    state["instruments"] = instruments
    with pytest.raises(UserError, match="the checkpoint does not fit this run") as error:
        trainer.resume(state)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_what_they_hold_may_be_anything(tmp_path: Path) -> None:
    """A figure that is not finite ends no run, unless the run's results hang on it."""
    trainer = trainer_of(config_of(), tmp_path)
    state = trainer.state.capture(vars(trainer.position))
    assert state is not None
    state["instruments"]["odd"] = {"x": torch.tensor(float("nan")), "y": float("inf")}
    assert trainer.nonfinite.first_of(state) is None


@pytest.mark.parametrize("moment", ["stepped", "evaluated"])
def test_one_may_end_the_run(moment: str, tmp_path: Path) -> None:
    probe = {"name": "looks:Look", "moment": moment, "ends_at": 6}
    trainer = trained(config_of(probes=[probe]), tmp_path)
    reached = trainer.position.reached
    assert reached is not None and (reached["samples"], reached["steps"]) == (330, 6)
    assert reached["seen"] == (6 if moment == "stepped" else 1)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines if line["split"] == "val"] == [6]
    assert sorted((tmp_path / "checkpoints").iterdir())[-1].name == f"samples-{330:012d}"


def test_a_target_is_any_figure(tmp_path: Path) -> None:
    average = EmaConfig(half_life=Duration.parse("1ep"))
    config = config_of(run=RunConfig(target={"ema_loss": 99.0}), ema=average)
    trainer = trained(config, tmp_path / "reached")
    assert trainer.position.reached is not None
    assert trainer.position.reached["ema_loss"] < 99 and trainer.position.steps == 6
    config = config_of(run=RunConfig(target={"perplexity": 3.0}))
    with pytest.raises(UserError, match=r"no such figure; there are split, .*loss, top1") as error:
        trained(config, tmp_path / "unknown")
    assert str(error.value).startswith("run.target={perplexity: 3.0}")


@pytest.mark.slow
def test_two_ranks_take_the_same_bits_with_every_instrument(train: Any, folder: Path) -> None:
    root = Path(__file__).parent.parent.parent
    options = ["--data.limit=330", "--batch.size=64", "--norm.kind=ghost", "--norm.ghost_size=16"]
    options += ["--schedule.length=2ep", "--optim.name=lars", "--optim.lr=2", "--data.workers=0"]
    path = f"{folder}:{root}"
    plain = train("plain", *options, "--telemetry.hardware_every=0", nproc=2, PYTHONPATH=path)
    watched = train(
        "watched",
        *options,
        "--telemetry.layers=1st",
        "--telemetry.hardware_every=0.05",
        "--distributed.check_every=1st",
        "--run.target={loss: 0}",
        "--evaluate.every=7st",
        "--evaluate.also=[{name: looks:neighbours, every: 5st, factor: 2}]",
        "--probes=[{name: looks:Look, moment: gradients, every: 2st}]",
        nproc=2,
        PYTHONPATH=path,
    )
    assert watched.summary["weights_sha256"] == plain.summary["weights_sha256"]
    assert [line["step"] for line in watched.lines("val")] == [7, 12]
    assert [line["step"] for line in watched.lines("also")] == [5, 10]
    assert watched.lines("also")[0]["neighbours_figure"] == 0.5
    assert watched.summary["neighbours_loss"] == 2.0
    assert [line["step"] for line in watched.lines("train") if "seen" in line] == [
        2,
        4,
        6,
        8,
        10,
        12,
    ]
    assert (watched.summary["headline"], watched.summary["target"]) == ("top1", None)
    assert json.loads((watched.directory / "task.json").read_text()) == {
        "task": "classification",
        "headline": {"name": "top1", "better": "higher", "percent": True},
        "figures": {
            "loss": {"name": "loss", "better": "lower", "percent": False},
            "top1": {"name": "top1", "better": "higher", "percent": True},
        },
    }
