"""A checkpoint whose sums are right and whose content is not of this run is refused in one line."""

from __future__ import annotations

import copy
import math
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
from largebatch.train import checkpoint
from largebatch.train.build import build
from largebatch.train.config import Config, EmaConfig, PrecisionConfig, SnapshotConfig
from largebatch.train.trainer import Trainer

CPU = torch.device("cpu")


def small(**sections: object) -> Config:
    return Config(
        data=DataConfig(limit=200),
        batch=BatchConfig(size=64),
        schedule=ScheduleConfig(
            length=Duration.parse("2ep"), curve="sgdr" if "snapshot" in sections else "cosine"
        ),
        **sections,  # type: ignore[arg-type]
    )


def trainer_of(directory: Path, **sections: object) -> Trainer:
    config = small(**sections)
    return Trainer(config, build(config, World(), CPU), RunDirectory(directory), StopRequest())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, dict[str, Any]]:
    """Return a trainer and the state that another one of its config left after three steps."""
    folder = tmp_path_factory.mktemp("run")
    sections = {"ema": EmaConfig(half_life=Duration.parse("1ep"))}
    trainer = trainer_of(folder, **sections)
    assert trainer.run(())
    found = checkpoint.newest_valid(folder / "checkpoints", print)
    assert found is not None
    return trainer_of(folder / "other", **sections), checkpoint.load(Path(found))


def set_at(state: Any, path: str, value: Any) -> None:
    """Put ``value`` at a path of keys, GONE to delete it; a callable makes it from the old one."""
    *inner, last = [int(key) if key.isdecimal() else key for key in path.split("/")]
    for key in inner:
        state = state[key]
    if value is GONE:
        del state[last]
    else:
        state[last] = value(state[last]) if callable(value) else value


GONE = object()
MOMENTUM, WEIGHT = "optimizer/state/0/momentum_buffer", "model/head.weight"
CASES = [
    *((part, GONE) for part in ("position", "model", "optimizer", "scaler", "average", "ranks")),
    *((part, wrong) for part in ("position", "model", "optimizer", "average")
      for wrong in (None, [], "text", 7)),
    *(("position/samples", wrong) for wrong in
      (math.nan, -1, "text", 64.5, 10**15, 10**40, None, True, [1], math.inf)),
    *(("position/steps", wrong) for wrong in (-1, "x", 1.5)),
    *(("position/seconds", wrong) for wrong in (math.nan, -1.0, "x", math.inf)),
    ("position/evaluated", 10**6),
    ("position/extra", 1),
    ("position/last", [1]),
    ("position/last", {"top1": "x"}),
    ("position/last", {"top1": [0.5, "x"]}),
    ("position/reached", 3),
    ("scaler", [1]),
    ("exchange", {"bucket_mb": "x", "topology": ""}),
    ("exchange", {"bucket_mb": -1, "topology": ""}),
    ("exchange", [1]),
    ("ranks", [1]),
    ("ranks", torch.zeros(3)),
    ("ranks", torch.zeros(1, 3)),
    ("ranks", "x"),
    (MOMENTUM, lambda t: t.int()),
    (MOMENTUM, lambda t: t.half()),
    (MOMENTUM, lambda t: t.double()),
    (MOMENTUM, lambda t: t[:1]),
    (MOMENTUM, lambda t: t.flatten()),
    (MOMENTUM, lambda t: t.sum()),
    (MOMENTUM, torch.zeros(0)),
    (MOMENTUM, 1.0),
    (MOMENTUM, "x"),
    ("optimizer/state/0", [1]),
    ("optimizer/state/999", {"momentum_buffer": torch.zeros(1)}),
    ("optimizer/state", 3),
    ("optimizer/param_groups", []),
    ("optimizer/param_groups", {"params": [0]}),
    ("optimizer/param_groups/0", "x"),
    ("optimizer/param_groups/0/params", "x"),
    ("optimizer/param_groups/0/params", lambda p: p[1:]),
    ("optimizer/param_groups/0/momentum", "x"),
    ("optimizer/param_groups/0/lr", [1]),
    ("average", {}),
    ("model", {}),
]  # fmt: skip
OF_MODEL = [GONE, 7, None, "text", [1.0]]
OF_TENSOR = [
    lambda t: t.to(torch.int8),
    lambda t: t.half(),
    lambda t: t.double(),
    lambda t: t[:-1],
    lambda t: t[None],
    lambda t: t.to(torch.complex64),
]


def first_weight(state: dict[str, Any]) -> str:
    return next(name for name, tensor in state["model"].items() if tensor.is_floating_point())


def refused(trainer: Trainer, state: dict[str, Any]) -> str:
    before = {name: t.clone() for name, t in trainer.parts.model.state_dict().items()}
    with pytest.raises(UserError, match="checkpoint does not fit") as error:
        trainer.resume(state)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    assert trainer.position.samples == 0
    for name, tensor in trainer.parts.model.state_dict().items():
        assert torch.equal(tensor, before[name]), "put back in part"
    return str(error.value)


@pytest.mark.parametrize(("path", "value"), CASES)
def test_a_state_of_another_form_is_refused(saved, path, value):
    trainer, state = saved
    state = copy.deepcopy(state)
    set_at(state, path, value)
    named = path.split("/")[0]
    assert named in refused(trainer, state)


@pytest.mark.parametrize("part", ["model", "average"])
@pytest.mark.parametrize("value", [*OF_MODEL, *OF_TENSOR])
def test_a_tensor_of_another_form_is_refused(saved, part, value):
    trainer, state = saved
    state = copy.deepcopy(state)
    name = first_weight(state)
    old = state[part].pop(name)
    if value is not GONE:
        state[part][name] = value(old) if callable(value) else value
    assert name in refused(trainer, state)
    state[part][name] = old
    state[part]["another"] = old
    assert "another" in refused(trainer, state)


def test_a_state_that_fits_is_taken_whole(saved, tmp_path):
    _, state = saved
    other = trainer_of(tmp_path, ema=EmaConfig(half_life=Duration.parse("1ep")))
    other.resume(copy.deepcopy(state))
    assert vars(other.position) == state["position"]
    captured = other.state.capture(vars(other.position))
    for part in ("model", "average"):
        assert all(torch.equal(captured[part][n], t) for n, t in state[part].items())
    # What an older run did not count begins as in a new one; its exchange may be unknown.
    state = copy.deepcopy(state)
    del state["position"]["reached"], state["exchange"]
    other.resume(state)
    assert other.position.reached is None


@pytest.mark.parametrize(
    ("sections", "part"),
    [
        ({"ema": EmaConfig(half_life=Duration.parse("1ep"))}, "average"),
        ({"snapshot": SnapshotConfig(cycles=2)}, "snapshots"),
        ({"precision": PrecisionConfig(compute="fp64")}, "model"),
        ({"optim": OptimConfig(name="adamw")}, None),
    ],
)
def test_a_checkpoint_of_another_config(tmp_path, sections, part):
    plain = trainer_of(tmp_path / "plain")
    state = plain.state.capture(vars(plain.position))
    trainer = trainer_of(tmp_path / "other", **sections)
    if part is not None:
        assert part in refused(trainer, state)
    else:
        trainer.resume(state)  # no step was taken: there is no state yet to differ


@pytest.mark.parametrize(
    ("compute", "optim"),
    [
        *(("fp32", {"name": name}) for name in
          ("sgd", "lars", "lamb", "rmsprop_warmup", "muon", "adam", "adagrad", "rmsprop",
           "adadelta", "adamax")),
        ("fp64", {"name": "nadam"}),
        ("fp64", {"name": "lamb", "offload": True}),
        ("fp32", {"name": "sgdw", "sam_rho": 0.05}),
        ("fp32", {"name": "radam"}),
        ("fp32", {"name": "adamw", "options": {"amsgrad": True}}),
    ],
)  # fmt: skip
def test_what_every_optimizer_saves_fits(tmp_path, compute, optim):
    sections = {
        "optim": OptimConfig(lr=0.01, **optim),
        "precision": PrecisionConfig(compute=compute),
    }
    trainer, other = trainer_of(tmp_path, **sections), trainer_of(tmp_path, **sections)
    steps = trainer.parts.feed.shares(0)
    trainer.step(next(steps))
    steps.close()
    captured = trainer.state.capture(vars(trainer.position))
    state = checkpoint.load(checkpoint.save(tmp_path, 64, captured, keep=1))
    for key, value in state["optimizer"]["state"][0].items():
        if isinstance(value, torch.Tensor) and value.ndim:
            wrong = copy.deepcopy(state)
            wrong["optimizer"]["state"][0][key] = value.int()
            assert key in refused(other, wrong)
    assert state["optimizer"]["state"]
    other.resume(copy.deepcopy(state))


def test_an_fp16_run_wants_a_scale(tmp_path):
    sections = {"precision": PrecisionConfig(compute="fp16")}
    trainer = trainer_of(tmp_path, **sections)
    state = trainer.state.capture(vars(trainer.position))
    assert state is not None and state["scaler"]
    trainer.resume(copy.deepcopy(state))
    for key, wrong in (("scale", math.nan), ("scale", "x"), ("_growth_tracker", None)):
        changed = copy.deepcopy(state)
        changed["scaler"][key] = wrong
        assert f"scaler {key}" in refused(trainer, changed)
    del state["scaler"]["scale"]
    assert "scaler scale" in refused(trainer, state)
