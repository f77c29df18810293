"""Losses, gradients and weights that are not finite: counted, left out, or the end of a run."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from largebatch._errors import RunFailure, UserError
from largebatch.data import DataConfig, EpochOrder
from largebatch.engine import DistributedConfig, Terms
from largebatch.engine.deepspeed_config import resolve
from largebatch.models import ModelConfig
from largebatch.nn import NormConfig
from largebatch.optim import OptimConfig
from largebatch.processes import World
from largebatch.processes.lifetime import StopRequest
from largebatch.record import RunDirectory
from largebatch.schedule import BatchConfig, Duration, ScheduleConfig
from largebatch.train import checkpoint
from largebatch.train.build import build, prepare
from largebatch.train.config import (
    CheckpointConfig,
    Config,
    EmaConfig,
    PrecisionConfig,
    RunConfig,
)
from largebatch.train.trainer import Trainer

CPU = torch.device("cpu")
SAMPLES, BATCH, BAD = 256, 32, 7
GHOST = NormConfig(kind="ghost", ghost_size=8)

MODULE = f'''
import torch
from torch import nn

class Blobs(torch.utils.data.Dataset):
    num_classes = 4

    def __init__(self, split, bad=()):
        g = torch.Generator().manual_seed(int(split == "val"))
        self.y = torch.randint(0, 4, ({SAMPLES},), generator=g)
        self.x = torch.randn({SAMPLES}, 1, 4, 4, generator=g) + self.y.view(-1, 1, 1, 1)
        for index in bad:
            self.x[index] = float("nan")

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        return self.x[index], int(self.y[index])

def fine(split):
    return Blobs(split)

def one(split):
    return Blobs(split, ({BAD},) if split == "train" else ())

def every(split):
    return Blobs(split, range({SAMPLES}) if split == "train" else ())

def lost_validation(split):
    return Blobs(split, ({BAD},) if split == "val" else ())

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.hidden, self.norm = nn.Linear(16, 12), nn.BatchNorm1d(12)
        self.out = nn.Linear(12, classes)

    def forward(self, x):
        return self.out(torch.relu(self.norm(self.hidden(x.flatten(1)))))

class Masked(Net):
    """Never says class 0: its loss is inf there, and every gradient finite."""

    def __init__(self, classes):
        super().__init__(classes)
        mask = torch.zeros(classes)
        mask[0] = -torch.inf
        self.register_buffer("mask", mask)

    def forward(self, x):
        return super().forward(x) + self.mask

class SteepRoot(Net):
    """The loss is finite and the gradient of the scale is not."""

    def __init__(self, classes):
        super().__init__(classes)
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return super().forward(x) + self.scale.sqrt()

def net(num_classes):
    return Net(num_classes)

def masked(num_classes):
    return Masked(num_classes)

def steep_root(num_classes):
    return SteepRoot(num_classes)

class Side(Net):
    """A norm beside the way to the loss, whose statistics alone are lost."""

    def __init__(self, classes):
        super().__init__(classes)
        self.side = nn.BatchNorm1d(12)

    def forward(self, x):
        self.side(self.hidden(x.flatten(1)).detach() * torch.inf)
        return super().forward(x)

def side(num_classes):
    return Side(num_classes)
'''


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the data sets and models of ``MODULE`` importable as ``blobs``."""
    (tmp_path / "blobs.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def config_of(
    data: str = "one", model: str = "net", length: str = "2ep", **sections: Any
) -> Config:
    return Config(
        **{
            "data": DataConfig(name=f"blobs:{data}", workers=0),
            "model": ModelConfig(name=f"blobs:{model}"),
            "norm": GHOST,
            "batch": BatchConfig(size=BATCH),
            "optim": OptimConfig(lr=0.02),
            "schedule": ScheduleConfig(length=Duration.parse(length), curve="constant"),
            "ema": EmaConfig(half_life=Duration.parse("100sa")),
            **sections,
        }
    )


def mode(name: str) -> RunConfig:
    return RunConfig(on_nonfinite=name)  # type: ignore[arg-type]


def trainer_of(config: Config, folder: Path) -> Trainer:
    directory = RunDirectory(folder / "run")
    directory.create()
    return Trainer(config, build(config, World(), CPU), directory, StopRequest())


def everything(trainer: Trainer) -> dict[str, Tensor]:
    """Return a copy of weights, buffers, optimizer's state and average."""
    state = trainer.state.capture({})
    assert state is not None
    del state["scaler"]
    buffers = dict(trainer.parts.model.named_buffers())  # those not saved as well
    _, tensors = checkpoint.flatten({**state, "buffers": buffers})
    return {name: tensor.clone() for name, tensor in tensors.items()}


def bad_step(order: EpochOrder) -> int:
    """Return which step of the first epoch, from 0, meets the bad sample."""
    return int((order.indices(0, 0, SAMPLES) == BAD).argmax()) // BATCH


LEFT_OUT = {
    "sgd": OptimConfig(lr=0.02),
    "corrected": OptimConfig(lr=0.02, lr_inside_momentum=True, momentum_correction=True),
    "clipped": OptimConfig(lr=0.02, clip_norm=1.0),
    "adaptive": OptimConfig(lr=0.02, adaptive_clip=0.1),
    "lars": OptimConfig(name="lars", lr=2.0, clip_norm=1.0),
    "lamb": OptimConfig(name="lamb", lr=0.01),
    "adamw": OptimConfig(name="adamw", lr=0.01, clip_norm=1.0),
    "nadam": OptimConfig(name="nadam", lr=0.01),
    "rmsprop_warmup": OptimConfig(name="rmsprop_warmup", lr=0.01),
    "muon": OptimConfig(name="muon", lr=0.01),
    "offload": OptimConfig(name="lamb", lr=0.01, offload=True),
    "sam": OptimConfig(lr=0.02, sam_rho=0.05),
}


def check_left_out(config: Config, folder: Path) -> None:
    """Take an epoch's steps: the one with the bad sample changes nothing, all others do."""
    trainer = trainer_of(config, folder)
    bad = bad_step(trainer.parts.feed.order)
    assert bad > 0  # there are moments by then
    for number, share in enumerate(trainer.parts.feed.shares(0)):
        before = everything(trainer)
        trainer.step(share)
        after = everything(trainer)
        same = {name: torch.equal(before[name], after[name]) for name in before}
        if number == bad:
            assert before.keys() == after.keys()
            assert all(same.values()), [name for name, equal in same.items() if not equal]
            return
        assert not same.get("/model/hidden.weight", True)
        assert not same["/average/hidden.weight"] and not same["/model/norm.running_mean"]


@pytest.mark.parametrize("name", LEFT_OUT)
def test_a_step_left_out_changes_nothing(name: str, folder: Path) -> None:
    check_left_out(config_of(run=mode("skip"), optim=LEFT_OUT[name]), folder)


@pytest.mark.parametrize("norm", [NormConfig(kind="batch"), NormConfig(kind="ghost", ghost_size=8,
                                  running="last")], ids=["batch", "last"])  # fmt: skip
def test_running_statistics_of_any_kind_stay(norm: NormConfig, folder: Path) -> None:
    check_left_out(config_of(run=mode("skip"), norm=norm), folder)


@pytest.mark.parametrize("compute", ["fp16", "bf16", "fp64"])
@pytest.mark.parametrize("micro", [None, 8])
def test_in_any_precision_and_accumulated(compute: Any, micro: int | None, folder: Path) -> None:
    batch = BatchConfig(size=BATCH, micro=micro)
    precision = PrecisionConfig(compute=compute)
    check_left_out(config_of(run=mode("skip"), precision=precision, batch=batch), folder)


def test_an_overflow_under_fp16_changes_nothing_else_than_the_scale(folder: Path) -> None:
    """At any setting: the norms' statistics and the average were once poisoned by it."""
    check_left_out(config_of(precision=PrecisionConfig(compute="fp16")), folder)


def test_a_loss_that_is_inf_is_left_out_though_gradients_are_finite(folder: Path) -> None:
    trainer = trainer_of(config_of("fine", "masked", run=mode("skip")), folder)
    before = everything(trainer)
    walk = trainer.parts.feed.shares(0)
    share = next(walk)
    sums = trainer.parts.stepper.run(share, stop=False)
    assert math.isinf(float(sums[0]))
    grads = [param.grad for param in trainer.parts.model.parameters()]
    assert all(grad is not None and grad.isfinite().all() for grad in grads)
    after = everything(trainer)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_all_three_settings_take_the_same_bits_where_all_is_finite(folder: Path) -> None:
    found = []
    for name in ("stop", "skip", "ignore"):
        trainer = trainer_of(config_of("fine", run=mode(name), length="1ep"), folder / name)
        assert trainer.run(())
        found.append(everything(trainer))
        assert trainer.nonfinite.steps == 0
    for other in found[1:]:
        assert all(torch.equal(found[0][key], other[key]) for key in found[0])


def failure_of(config: Config, folder: Path) -> tuple[Trainer, str]:
    trainer = trainer_of(config, folder)
    with pytest.raises(RunFailure) as failure:
        trainer.run(())
    return trainer, str(failure.value)


def checkpoints_are_finite(folder: Path) -> list[str]:
    found = sorted((folder / "run" / "checkpoints").iterdir())
    for path in found:
        _, tensors = checkpoint.flatten(checkpoint.load(path))
        assert all(t.isfinite().all() for n, t in tensors.items() if not n.endswith("mask"))
    return [path.name for path in found]


@pytest.mark.parametrize("name", ["stop", "ignore"])
def test_no_checkpoint_is_of_a_lost_run(name: str, folder: Path) -> None:
    saving = CheckpointConfig(every=Duration.parse("1st"))
    config = config_of(run=mode(name), checkpoint=saving)
    trainer, line = failure_of(config, folder)
    bad = bad_step(trainer.parts.feed.order)
    last = f"samples-{bad * BATCH:012d}"
    assert checkpoints_are_finite(folder)[-1] == last
    assert f"step {bad + 1} ({(bad + 1) * BATCH} samples), rank 0: the input of training" in line
    assert f"sample {BAD} is not finite" in line and last in line and "mend the data" in line
    assert trainer.position.steps == (bad + 1 if name == "stop" else 2 * SAMPLES // BATCH)


def test_a_loss_may_be_inf_for_a_while(folder: Path) -> None:
    """Weights are finite, so that only the number of steps tells; a constant mask is no loss."""
    long = CheckpointConfig(every=Duration.parse("8st"))
    trainer, line = failure_of(config_of("fine", "masked", length="10ep", checkpoint=long), folder)
    assert trainer.position.steps == 21  # of which the last is under way as 20 are counted
    assert "step 1 (32 samples), rank 0: the loss is not finite, all inputs are" in line
    assert "20 steps in a row" in line
    assert len(checkpoints_are_finite(folder)) == 2


def test_a_gradient_is_named(folder: Path) -> None:
    config = config_of("fine", "steep_root", length="10ep", run=mode("skip"))
    _, line = failure_of(config, folder)
    assert "the gradient of scale is not finite; 20 steps in a row" in line
    _, line = failure_of(replace(config, run=mode("stop")), folder / "stop")
    assert "scale is not finite at 256 samples" in line  # known by the next step's loss


def test_statistics_alone_end_a_run(folder: Path) -> None:
    trainer, line = failure_of(config_of("fine", "side"), folder)
    assert trainer.nonfinite.steps == 0
    assert "side.running_mean is not finite at 256 samples" in line


def test_a_scale_that_sinks_ends_the_run(folder: Path) -> None:
    precision = PrecisionConfig(compute="fp16", loss_scale=1e30)
    config = config_of("fine", length="10ep", precision=precision)
    trainer, line = failure_of(config, folder)
    assert trainer.nonfinite.steps == 20
    assert "the gradient of hidden.weight is not finite" in line and "precision.loss_scale" in line
    assert checkpoints_are_finite(folder)
    precision = PrecisionConfig(compute="fp16", loss_scale=2e-4)
    trainer, line = failure_of(config_of("every", precision=precision), folder / "sunk")
    assert "the loss scale has sunk to 5e-05" in line and trainer.nonfinite.steps == 1


def test_few_overflows_are_how_fp16_finds_its_scale(folder: Path, capfd: Any) -> None:
    precision = PrecisionConfig(compute="fp16", loss_scale=2.0**22)
    trainer = trainer_of(config_of("fine", precision=precision), folder)
    assert trainer.run(())
    assert 0 < trainer.nonfinite.steps < 10 and trainer.nonfinite.in_a_row == 0
    assert "is not finite;" not in capfd.readouterr().out


@pytest.mark.parametrize("name", ["skip", "ignore"])
def test_a_run_without_a_finite_step_does_not_finish(name: str, folder: Path) -> None:
    precision = PrecisionConfig(compute="fp16")
    config = config_of("every", run=mode(name), length="5st", precision=precision)
    _, line = failure_of(config, folder)
    assert "no step of the run was finite" in line


def test_lost_validation_data_are_told_from_lost_weights(folder: Path, capfd: Any) -> None:
    trainer = trainer_of(config_of("lost_validation"), folder)
    assert trainer.run(())
    assert (trainer.nonfinite.steps, trainer.nonfinite.evaluations) == (0, 2)
    said = capfd.readouterr().out
    assert (
        said.count(f"weights are finite, the loss is not; the input of validation sample {BAD} is")
        == 1
    )


def test_counts_go_on_with_the_run(folder: Path) -> None:
    saving = CheckpointConfig(every=Duration.parse("4st"), keep=9)
    config = config_of(run=mode("skip"), length="20st", checkpoint=saving)
    whole = trainer_of(config, folder)
    whole.run(())
    assert whole.nonfinite.steps > 1
    half = sorted((folder / "run" / "checkpoints").iterdir())[-2]
    again = trainer_of(config, folder / "again")
    again.resume(checkpoint.load(half))
    again.run(())
    assert again.nonfinite.state() == whole.nonfinite.state()
    for name, tensor in whole.parts.model.state_dict().items():
        assert torch.equal(tensor, again.parts.model.state_dict()[name]), name


@pytest.mark.parametrize(
    ("place", "named"),
    [
        (("model", "hidden.weight"), "hidden.weight"),
        (("model", "norm.running_var"), "norm.running_var"),
        (("optimizer", "state", 0, "momentum_buffer"), "momentum_buffer of hidden.weight"),
        (("average", "out.bias"), "average out.bias"),
    ],
)
def test_a_lost_checkpoint_is_refused(place: tuple[Any, ...], named: str, folder: Path) -> None:
    trainer = trainer_of(config_of("fine", length="1ep"), folder)
    trainer.run(())
    (path,) = (folder / "run" / "checkpoints").iterdir()
    state = checkpoint.load(path)
    tensor: Any = state
    for key in place:
        tensor = tensor[key]
    tensor.view(-1)[0] = math.nan
    again = trainer_of(config_of("fine", length="2ep"), folder / "again")
    with pytest.raises(UserError, match=f"{named} is not finite"):
        again.resume(state)
    state["position"]["nonfinite"] = {"_mode": 3}
    tensor.view(-1)[0] = 0.0
    with pytest.raises(UserError, match="no count"):
        again.resume(state)


def test_lost_weights_are_refused_before_the_first_step(folder: Path) -> None:
    model = prepare(config_of("fine"), CPU).model
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["norm.running_mean"][3] = math.inf
    save_file(state, folder / "lost.safetensors")
    lost = ModelConfig(name="blobs:net", init_from=str(folder / "lost.safetensors"))
    with pytest.raises(UserError, match=r"norm\.running_mean is not finite before the first step"):
        prepare(replace(config_of("fine"), model=lost), CPU)


def test_what_zero_cannot_promise_is_refused() -> None:
    zero = DistributedConfig(engine="deepspeed")
    with pytest.raises(UserError, match=r"run\.on_nonfinite=skip.*zero_stage=0"):
        resolve(zero, Terms(skip_nonfinite=True))
    assert resolve(replace(zero, zero_stage=0), Terms(skip_nonfinite=True))


def constant(text: str) -> float:
    raise AssertionError(f"{text} is no JSON")


@pytest.mark.slow
def test_ranks_stop_at_bad_data_and_go_on_without_them(train: Any, folder: Path) -> None:
    arguments = ["--data.name=blobs:one", "--model.name=blobs:net", "--data.workers=0"]
    arguments += [f"--batch.size={BATCH}", "--norm.kind=ghost", "--norm.ghost_size=8"]
    arguments += ["--schedule.length=2ep", "--checkpoint.every=4st"]
    stopped = train("run", *arguments, nproc=2, code=1, PYTHONPATH=python_path(folder))
    place = int((EpochOrder(SAMPLES, 0).indices(0, 0, SAMPLES) == BAD).argmax())
    rank = place % BATCH // (BATCH // 2)
    (line,) = [line for line in stopped.output.splitlines() if line.startswith("largebatch: ")]
    assert f"rank {rank}: the input of training sample {BAD} is not finite" in line
    assert not (stopped.directory / "summary.json").exists()
    assert stopped.lines("train")[-1]["nonfinite_steps"] >= 1
    # On another number of ranks, which a continuation may have.
    done = train("run", *arguments, "--run.on_nonfinite=skip", PYTHONPATH=python_path(folder))
    assert done.summary["nonfinite_steps"] == 2 and done.summary["nonfinite_evaluations"] == 0
    lost = [line["step"] for line in done.lines("train") if line["loss"] is None]
    steps = SAMPLES // BATCH
    assert lost[0] == place // BATCH + 1 and len(lost) == 2 and steps < lost[1] <= 2 * steps
    texts = [(done.directory / "summary.json").read_text()]
    texts += (done.directory / "metrics.jsonl").read_text().splitlines()
    for text in texts:
        json.loads(text, parse_constant=constant)
    assert all(tensor.isfinite().all() for tensor in done.weights.values())
    assert "2 steps not finite" in done.output
    assert "Steps not finite" in (done.directory / "report.html").read_text()


def python_path(folder: Path) -> str:
    root = Path(__file__).parent.parent.parent
    return f"{folder}:{root}"


def test_a_rate_that_is_far_too_high_ends_in_failure(folder: Path) -> None:
    """Of the digits as they come: statistics of norms are lost first, with a finite loss."""
    config = Config(
        optim=OptimConfig(lr=1e9),
        schedule=ScheduleConfig(length=Duration.parse("30ep")),
        data=DataConfig(limit=256),
    )
    _, line = failure_of(config, folder)
    assert "is not finite" in line and "run.on_nonfinite=stop" in line
    checkpoints_are_finite(folder)


@pytest.mark.slow
@pytest.mark.parametrize("compute", [pytest.param("fp32", marks=pytest.mark.long), "fp16"])
def test_sharded_ranks_leave_out_the_same_step(compute: str, train: Any, folder: Path) -> None:
    arguments = ["--data.name=blobs:one", "--model.name=blobs:net", "--data.workers=0"]
    arguments += [f"--batch.size={BATCH}", "--norm.kind=ghost", "--norm.ghost_size=8"]
    arguments += ["--schedule.length=2ep", "--run.on_nonfinite=skip", "--ema.half_life=1ep"]
    arguments += [f"--precision.compute={compute}", "--optim.lr=0.02"]
    path = python_path(folder)
    plain = train("plain", *arguments, PYTHONPATH=path)
    sharded = train("fsdp", *arguments, "--distributed.engine=fsdp", nproc=2, PYTHONPATH=path)
    assert sharded.summary["nonfinite_steps"] == plain.summary["nonfinite_steps"] == 2
    tolerance = 1e-4 if compute == "fp32" else 2e-2
    for name in ("loss", "ema_loss"):
        assert sharded.summary[name] == pytest.approx(plain.summary[name], rel=tolerance)
