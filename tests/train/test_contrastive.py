"""Steps whose samples are tied together: the same run in any passes and on any ranks."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from largebatch._errors import UserError
from largebatch.data import DataConfig
from largebatch.nn import NormConfig
from largebatch.optim import OptimConfig
from largebatch.processes import World
from largebatch.processes.lifetime import StopRequest
from largebatch.record import RunDirectory
from largebatch.schedule import BatchConfig, Duration, ScheduleConfig
from largebatch.tasks import Contrastive, ContrastiveConfig
from largebatch.train.assess import assess
from largebatch.train.build import build
from largebatch.train.config import Config, PrecisionConfig
from largebatch.train.coupling import Coupling
from largebatch.train.precision import Precision
from largebatch.train.trainer import Trainer

if TYPE_CHECKING:
    from tests.train.conftest import Finished, Train

CPU = torch.device("cpu")
DOUBLE = (
    *("--task.name=contrastive", "--data.limit=290", "--batch.size=128"),
    *("--norm.kind=ghost", "--norm.ghost_size=32", "--optim.lr=0.05", "--optim.clip_norm=1.0"),
    *("--precision.compute=fp64", "--schedule.length=7st"),
)


def trained(folder: Path, steps: int = 3, **sections: Any) -> dict[str, torch.Tensor]:
    """Return the state after some steps: of 128, 128 and 34 samples, and so on."""
    config = Config(
        **{
            "task": ContrastiveConfig("contrastive"),
            "data": DataConfig(limit=290, augment="views"),
            "batch": BatchConfig(size=128),
            "norm": NormConfig(kind="ghost", ghost_size=32),
            "optim": OptimConfig(lr=0.05, momentum=0.9),
            "schedule": ScheduleConfig(length=Duration.parse(f"{steps}st")),
            "precision": PrecisionConfig(compute="fp64"),
            **sections,
        }
    )
    trainer = Trainer(config, build(config, World(), CPU), RunDirectory(folder), StopRequest())
    for share in trainer.parts.feed.shares(0):
        trainer.step(share)
    return trainer.parts.model.state_dict()


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"task": ContrastiveConfig("contrastive", negatives=48)},  # ghosts that passes cut through
        {"optim": OptimConfig(lr=0.05, sam_rho=0.05)},
    ],
    ids=["step", "negatives", "sam"],
)
def test_passes_change_nothing(keys: dict[str, Any], tmp_path: Path) -> None:
    """Weights, and running statistics, which count each ghost once though it is taken twice."""
    whole = trained(tmp_path, **keys)
    cut = trained(tmp_path, batch=BatchConfig(size=128, micro=32), **keys)
    for name, tensor in whole.items():
        assert torch.allclose(cut[name].double(), tensor.double(), rtol=1e-10, atol=1e-12), name


def test_negatives_and_temperature_shape_the_run(tmp_path: Path) -> None:
    found = set()
    for keys in ({}, {"negatives": 32}, {"temperature": 0.1}):
        state = trained(tmp_path, 1, task=ContrastiveConfig("contrastive", **keys))
        found.add(float(state["head.0.weight"].norm()))
    assert len(found) == 3


def test_gradients_of_ghosts_are_those_of_the_whole_matrix() -> None:
    """Ghosts of 5 among 12 samples, which three passes hold out of order: 5, 5 and 2."""
    task = ContrastiveConfig("contrastive", negatives=5)
    own = Contrastive(task, views=2)
    coupling = Coupling(own, True, Precision(PrecisionConfig(compute="fp64"), CPU), CPU)
    outputs = torch.randn(12, 2, 6, dtype=torch.float64, requires_grad=True)
    losses = [own.couple(outputs[a:b], True)[0] for a, b in ((0, 5), (5, 10), (10, 12))]
    total = torch.stack(losses).sum()
    (expected,) = torch.autograd.grad(total, outputs)
    order = np.array([7, 0, 1, 11, 2, 3, 4, 5, 6, 8, 9, 10])
    held = [(outputs[part], part) for part in np.split(order, [3, 8])]
    gradients, sums = coupling.gradient(held, 12)
    assert torch.allclose(torch.cat(gradients), expected[order], rtol=0, atol=1e-12)
    assert sums.tolist() == pytest.approx([total.item(), 12.0], rel=1e-12)
    assert coupling.sums(held, 12).tolist() == pytest.approx(sums.tolist(), rel=1e-12)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"optim": OptimConfig(sam_rho=0.1, sam_scope="rank")}, "optim.sam_scope=rank: .* ties"),
        ({"batch": BatchConfig(size=1)}, "batch.size=1: at least 2"),
        ({"data": DataConfig(limit=290)}, "set data.augment=views"),
    ],
)
def test_what_cannot_be_is_refused(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        trained(tmp_path, **keys)


@pytest.mark.parametrize("name", ["noise", "doubling", "curvature", "sharpness"])
def test_probes_that_take_a_step_apart_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{name}.* (ties|are not|tie)"):
        trained(tmp_path, probes=[{"name": name}])


@pytest.mark.slow
def test_it_is_judged_by_neighbours_and_by_a_linear_classifier(train: Train) -> None:
    """``largebatch eval`` gives the figures of the run's end, to the bit."""
    also = "--evaluate.also=[{name: knn, neighbours: 50, every: 2st}, {name: linear}]"
    run = train("one", *DOUBLE, "--schedule.length=3st", "--evaluate.every=1st", also)
    first, second, last = run.lines("val")
    assert "knn_top1" not in first and "linear_top1" in first and "knn_top1" in second
    assert last["knn_top1"] > 0.6 and last["linear_top1"] > 0.8
    assert run.summary["headline"] == "knn_top1" and run.summary["knn_top1"] == last["knn_top1"]
    found = assess(run.directory)
    assert found == {key: last[key] for key in ("loss", "count", "knn_top1", "linear_top1")}


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [
        pytest.param((), id="step"),
        pytest.param(("--task.negatives=48",), id="negatives", marks=pytest.mark.long),
        pytest.param(("--norm.kind=sync",), id="sync", marks=pytest.mark.long),
    ],
)
def test_ranks_change_nothing(train: Train, keys: tuple[str, ...]) -> None:
    """In every third step one rank of three has no sample, and takes part."""
    one = train("one", *DOUBLE, *keys)
    shapes = {2: ("--distributed.engine=fsdp",), 3: ("--batch.micro=32",)}
    for nproc, more in shapes.items():
        if keys == ("--norm.kind=sync",):
            more = ()
        many = train(f"ranks{nproc}", *DOUBLE, *keys, *more, nproc=nproc)
        for a, b in zip(one.lines("train"), many.lines("train"), strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-9)
            assert a["order_hash"] == b["order_hash"]
        for a, b in zip(one.lines("val"), many.lines("val"), strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-9)
            assert (a["knn_top1"], a["count"]) == (b["knn_top1"], b["count"])
        for name, tensor in one.weights.items():
            assert torch.allclose(many.weights[name], tensor, rtol=1e-9, atol=1e-9), name


@pytest.mark.slow
@pytest.mark.long
def test_it_goes_on_after_a_kill(goes_on: Callable[..., Finished]) -> None:
    options = (*DOUBLE, "--batch.micro=32")  # two passes a step
    whole = goes_on(*options, "--schedule.length=40st", "--checkpoint.every=5st", step=12)
    assert whole.summary["steps"] == 40


@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_deepspeed_trains_the_same(train: Train, stage: int) -> None:
    options = (*DOUBLE, "--precision.compute=fp32", "--batch.micro=32")
    one = train("one", *options)
    engine = ("--distributed.engine=deepspeed", f"--distributed.zero_stage={stage}")
    many = train("many", *options, *engine, nproc=2)
    for a, b in zip(one.lines("train"), many.lines("train"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)
        assert a["order_hash"] == b["order_hash"]
