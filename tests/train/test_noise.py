"""The noise scale of runs against gradients taken one by one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from largebatch._errors import UserError
from largebatch.data import DataConfig
from largebatch.nn import (
    NormConfig,
    convert_batch_norm,
    frozen_statistics,
    ghost_place,
    observable_norms,
)
from largebatch.optim import OptimConfig
from largebatch.probes import doubling
from largebatch.probes.noise import NoiseScale
from largebatch.probes.noise_source import SOURCES as SOURCES_OF_ALL
from largebatch.probes.noise_source import Means
from largebatch.probes.noise_terms import noise_terms
from largebatch.processes import World
from largebatch.processes.lifetime import StopRequest
from largebatch.record import MetricsWriter, RunDirectory, TensorBoardMirror, read_metrics
from largebatch.schedule import BatchConfig, Duration, ScheduleConfig
from largebatch.train import checkpoint
from largebatch.train.build import build
from largebatch.train.config import Config, PrecisionConfig, TelemetryConfig
from largebatch.train.trainer import Trainer

CPU = torch.device("cpu")
GHOST, BATCH = 16, 64


def trainer_of(folder: Path, micro: int | None = None, **sections: Any) -> Trainer:
    source = sections.pop("source", None)
    probe = {"name": "noise", "every": "1st", **({"source": source} if source else {})}
    config = Config(
        **{
            "data": DataConfig(limit=330),
            "batch": BatchConfig(size=BATCH, micro=micro),
            "norm": NormConfig(kind="ghost", ghost_size=GHOST),
            "optim": OptimConfig(lr=0.05),
            "schedule": ScheduleConfig(length=Duration.parse("2ep")),
            "telemetry": TelemetryConfig(hardware_every=0.0),
            "precision": PrecisionConfig(compute="fp64"),
            "probes": [probe],
            **sections,
        }
    )
    directory = RunDirectory(folder)
    directory.create()
    return Trainer(config, build(config, World(), CPU), directory, StopRequest())


def trained(trainer: Trainer) -> dict[str, torch.Tensor]:
    folder = trainer.directory.path
    writers = MetricsWriter(trainer.directory.metrics), TensorBoardMirror(folder / "tensorboard")
    assert trainer.run(writers)
    for writer in writers:
        writer.close()
    return {name: tensor.clone() for name, tensor in trainer.parts.model.state_dict().items()}


def noise_of(trainer: Trainer) -> NoiseScale:
    noise = trainer.panel.find(NoiseScale)
    assert noise is not None
    return noise


def first_terms(trainer: Trainer) -> dict[str, tuple[float, float]]:
    """Take the first step; return |G|^2 and T of every layer."""
    shares = trainer.parts.feed.shares(0)
    trainer.step(next(shares))
    trainer.ledger.settle()
    noise = noise_of(trainer)
    row = noise.record.state()["rows"][-1, 2:].tolist()
    signal, trace = row[: len(row) // 2], row[len(row) // 2 :]
    return dict(zip(noise.names, zip(signal, trace, strict=True), strict=True))


def by_ghost(trainer: Trainer) -> list[dict[str, torch.Tensor]]:
    """Return what each ghost of the first step adds to its gradient, at passes of one ghost."""
    parts, found = trainer.parts, []
    named = dict(parts.model.named_parameters())
    shares = parts.feed.shares(0)
    for one in next(shares).passes:
        with frozen_statistics(parts.model), ghost_place(0, 1):
            loss, _ = parts.precision.wrap(parts.task.train)(parts.model, one.batch)
        grads = torch.autograd.grad(loss / BATCH, list(named.values()))
        found.append(dict(zip(named, grads, strict=True)))
    return found


@pytest.fixture(scope="module")
def ghosts(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, torch.Tensor]]:
    found = by_ghost(trainer_of(tmp_path_factory.mktemp("ghosts"), micro=GHOST))
    assert len(found) == BATCH // GHOST
    return found


def expected(
    ghosts: list[dict[str, torch.Tensor]], known: list[list[int]]
) -> dict[str, tuple[float, float]]:
    """Return the terms of every tensor where ``known`` groups of ghosts are measured."""
    found = {}
    shares = [len(group) / len(ghosts) for group in known]
    for name in ghosts[0]:
        one = torch.stack([ghost[name].flatten() for ghost in ghosts])
        parts = sum(float(one[group].sum(0).square().sum()) for group in known)
        whole = float(one.sum(0).square().sum())
        found[name] = noise_terms(whole, parts, sum(shares), sum(s * s for s in shares), BATCH)
    return found


def close(found: dict[str, tuple[float, float]], wanted: dict[str, tuple[float, float]]) -> float:
    """Hold all terms to 1e-9; return the largest difference as a share of the sum of the terms."""
    assert found.keys() == wanted.keys() and found
    size = sum(abs(g) for g, _ in wanted.values())
    for name, terms in found.items():
        assert terms[0] == pytest.approx(wanted[name][0], rel=1e-9, abs=1e-12 * size)
        assert terms[1] == pytest.approx(wanted[name][1], rel=1e-9, abs=1e-12 * size * BATCH)
    sums = [sum(abs(terms[i]) for terms in wanted.values()) for i in (0, 1)]
    return max(abs(found[n][i] - wanted[n][i]) / sums[i] for n in found for i in (0, 1))


SOURCES = {
    "first": ({"micro": GHOST}, [[0]]),
    "first of two": ({"micro": 2 * GHOST, "source": "first"}, [[0, 1]]),
    "passes": ({"micro": GHOST, "source": "passes"}, [[0], [1], [2], [3]]),
    "passes of two": ({"micro": 2 * GHOST, "source": "passes"}, [[0, 1], [2, 3]]),
    "split": ({}, [[0]]),
}


@pytest.mark.parametrize("source", SOURCES)
def test_each_source_is_exact_about_its_groups(
    source: str, ghosts: Any, tmp_path: Path, record_property: Any
) -> None:
    sections, known = SOURCES[source]
    trainer = trainer_of(tmp_path, **sections)
    assert noise_of(trainer).source == source.split()[0]
    off = close(first_terms(trainer), expected(ghosts, known))
    record_property("largest difference", f"{off:.1e}")


def of_norms(trainer: Trainer, ghosts: Any) -> dict[str, tuple[float, float]]:
    each = expected(ghosts, [[0], [1], [2], [3]])
    return {
        name: tuple(each[f"{name}.weight"][i] + each[f"{name}.bias"][i] for i in (0, 1))
        for name in observable_norms(trainer.parts.model)
    }


@pytest.mark.parametrize("micro", [None, GHOST])
def test_the_norms_are_exact_about_their_ghosts(
    micro: int | None, ghosts: Any, tmp_path: Path, record_property: Any
) -> None:
    trainer = trainer_of(tmp_path, micro, source="norms")
    off = close(first_terms(trainer), of_norms(trainer, ghosts))
    record_property("largest difference", f"{off:.1e}")
    assert all(norm.gradient_observer is None for norm in noise_of(trainer)._ghosts._norms)


@pytest.mark.parametrize("source", ["first", "norms"])
def test_of_sam_it_is_the_first_gradient(source: str, ghosts: Any, tmp_path: Path) -> None:
    optim = OptimConfig(lr=0.05, sam_rho=0.2)
    trainer = trainer_of(tmp_path, GHOST, optim=optim, source=source)
    wanted = expected(ghosts, [[0]]) if source == "first" else of_norms(trainer, ghosts)
    close(first_terms(trainer), wanted)
    optim.sam_scope = "rank"
    with pytest.raises(UserError, match=r"noise reads .* optim\.sam_scope=rank"):
        trainer_of(tmp_path / "rank", GHOST, optim=optim)


@pytest.mark.parametrize("source", ["split", "passes", "norms"])
def test_no_source_changes_a_bit(source: str, tmp_path: Path) -> None:
    """The one that a run chooses by itself is tested with all instruments."""
    micro = None if source == "split" else GHOST
    watched = trained(trainer_of(tmp_path / "a", micro, source=source))
    plain = trained(trainer_of(tmp_path / "b", micro, probes=[]))
    assert all(torch.equal(plain[name], tensor) for name, tensor in watched.items())


def test_a_run_of_digits_against_gradients_of_single_samples(tmp_path: Path) -> None:
    """At weights that stay, without norms over samples: T and |G|^2 of all 330 samples."""
    trainer = trainer_of(
        tmp_path,
        micro=8,
        norm=NormConfig(kind="group", groups=1),
        optim=OptimConfig(lr=1e-30, weight_decay=0.0, momentum=0.0),
        schedule=ScheduleConfig(length=Duration.parse("20ep"), curve="constant"),
        probes=[{"name": "noise", "every": "1st", "source": "passes", "half_life": "100%"}],
    )
    parts = trainer.parts
    params = list(parts.model.parameters())
    total, squares, count = 0.0, 0.0, 0
    for share in parts.feed.shares(0):
        if share.step.epoch > 0:
            break
        for one in share.passes:
            for n in range(len(one.batch)):
                sample = one.batch.__class__(
                    *(t[n : n + 1] for t in one.batch.tensors()),
                    one.batch.indices[n : n + 1],
                    one.batch.positions[n : n + 1],
                    (1,),
                )
                loss, _ = parts.precision.wrap(parts.task.train)(parts.model, sample)
                flat = torch.cat([g.flatten() for g in torch.autograd.grad(loss, params)])
                total, squares, count = (
                    total + flat,
                    squares + float(flat.square().sum()),
                    count + 1,
                )
    assert count == 330
    mean = float((total / count).square().sum())
    spread = (squares - count * mean) / (count - 1)
    trained(trainer)
    estimate = noise_of(trainer).record.estimate()
    assert estimate is not None and estimate.bounded
    truth = spread / (mean - spread / count)
    assert estimate.error < 0.25 * truth
    assert abs(estimate.value - truth) < 4 * estimate.error
    of_set = estimate.of_set(count)
    assert of_set.low < spread / mean < of_set.high
    line = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "noise_scale" in line][-1]
    assert line["noise_scale"] == pytest.approx(estimate.value)
    assert line["noise_scale_low"] < line["noise_scale"] < line["noise_scale_high"]
    assert line["noise_scale_of_set"] == pytest.approx(of_set.value)
    assert line["noise_groups"] in (8, math.ceil((330 - 5 * 64) / 8))
    layers = [x for x in read_metrics(tmp_path / "layers.jsonl") if x["split"] == "noise"]
    names = [name for name, _ in parts.model.named_parameters()]
    assert list(layers[-1]["layers"]) == names
    signal = sum(row[0] for row in layers[-1]["layers"].values())
    trace = sum(row[1] for row in layers[-1]["layers"].values())
    assert trace / signal == pytest.approx(truth, rel=0.5)


@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_an_optimizer_by_layers_has_its_own(name: str, tmp_path: Path) -> None:
    optim = OptimConfig(name=name, lr=1e-3)
    length = ScheduleConfig(length=Duration.parse("8ep"))
    trainer = trainer_of(tmp_path, GHOST, optim=optim, schedule=length, source="passes")
    trained(trainer)
    found = [x for x in read_metrics(tmp_path / "metrics.jsonl") if f"noise_scale_{name}" in x]
    assert found
    line, record = found[-1], noise_of(trainer).record
    assert line[f"noise_scale_{name}_low"] < line[f"noise_scale_{name}_high"]
    weights = [float(p.detach().norm()) for p in trainer.parts.model.parameters()]
    assert np.all(record.lengths > 0) and record.lengths == pytest.approx(weights, rel=0.2)


def test_terms_go_on_with_the_run(tmp_path: Path) -> None:
    whole = trainer_of(tmp_path / "whole", GHOST)
    whole.config.checkpoint.every = Duration.parse("5st")
    trained(whole)
    again = trainer_of(tmp_path / "again", GHOST)
    again.resume(checkpoint.load(tmp_path / "whole" / "checkpoints" / f"samples-{330:012d}"))
    assert again.run()
    assert noise_of(again).record.estimate() == noise_of(whole).record.estimate()


@pytest.mark.parametrize("source", ["first", "passes", "norms"])
def test_nothing_of_it_waits_for_the_device(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between a measured step's passes and its update no number is read or sent."""
    optim = OptimConfig(name="lars", lr=1e-3)
    trainer = trainer_of(tmp_path, GHOST, source=source, optim=optim)
    measure, seen = NoiseScale.measure, []

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the host waits for the device here")

    def measured(self: NoiseScale, at: Any) -> Any:
        with monkeypatch.context() as patch:
            for name in ("item", "tolist", "cpu", "numpy", "__float__", "__bool__", "new_tensor"):
                patch.setattr(torch.Tensor, name, refuse)
            patch.setattr(torch, "tensor", refuse)
            seen.append(measure(self, at))
        return seen[-1]

    monkeypatch.setattr(NoiseScale, "measure", measured)
    first_terms(trainer)
    assert len(seen) == 1 and seen[0]["row"].ndim == 1


def test_lines_of_layers_need_no_step_of_their_own(tmp_path: Path) -> None:
    probe = {"name": "noise", "every": "5st", "layers": "7st"}
    length = ScheduleConfig(length=Duration.parse("4ep"))
    trained(trainer_of(tmp_path, GHOST, probes=[probe], schedule=length))
    lines = read_metrics(tmp_path / "layers.jsonl")
    assert [line["step"] for line in lines] == [10, 15]


REFUSED = {
    "source=ranks: there is one rank": {"source": "ranks"},
    "source=first: a rank makes one pass a step; set batch.micro": {"source": "first"},
    "source=norms: no norm over ghosts": {
        "source": "norms",
        "norm": NormConfig(kind="group", groups=1),
    },
    "nothing to measure a noise scale by: a batch norm ties all samples": {
        "norm": NormConfig(kind="batch")
    },
    "source='x': choose from auto, norms": {"source": "x"},
    "half_life=0%: more than 0": {"probes": [{"name": "noise", "half_life": "0%"}]},
    "layers='often': duration": {"probes": [{"name": "noise", "layers": "often"}]},
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_cannot_be_measured_says_so_by_name(said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        trainer_of(tmp_path, **REFUSED[said])
    assert str(error.value).startswith(f"probes[0]: {said}") and "\n" not in str(error.value)


@pytest.mark.parametrize("micro", [GHOST, None])
def test_the_doubling_takes_the_quarters_of_a_step(
    micro: int | None, ghosts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From passes, and from the only pass: the gradients of its ghosts, one by one."""
    trainer = trainer_of(tmp_path, micro, probes=[{"name": "doubling", "every": "1st"}])
    seen: list[Any] = []
    plain = doubling.control_terms
    monkeypatch.setattr(
        doubling, "control_terms", lambda quarters, p: seen.append(quarters) or plain(quarters, p)
    )
    shares = trainer.parts.feed.shares(0)
    trainer.step(next(shares))
    trainer.ledger.settle()
    (quarters,) = seen
    named = {id(p): name for name, p in trainer.parts.model.named_parameters()}
    names = [named[id(p)] for g in trainer.parts.optimizer.param_groups for p in g["params"]]
    for quarter, ghost in zip(quarters, ghosts, strict=True):
        for name, found in zip(names, quarter, strict=True):
            assert found == pytest.approx(4 * ghost[name], rel=1e-8, abs=1e-12)


@dataclass
class Owner:
    """An engine, as far as the choice goes."""

    name: str
    apart: tuple[str, ...]
    scaler: Any = None


DDP, FSDP, ZERO = (
    Owner("ddp", ("ranks", "first", "passes")),
    Owner("fsdp", ("first",)),
    Owner("ds", ()),
)


@pytest.mark.parametrize(
    ("engine", "ranks", "several", "norm", "chosen"),
    [
        (DDP, 2, False, "ghost", "ranks"),
        (DDP, 1, True, "batch", "first"),
        (DDP, 1, False, "ghost", "split"),
        (Owner("ddp", DDP.apart, "a scaler"), 1, False, "ghost", "norms"),
        (FSDP, 2, True, "batch", "first"),
        (FSDP, 2, False, "ghost", "norms"),
        (FSDP, 2, False, "batch", r"a rank makes one pass a step; .*, or take norms$"),
        (ZERO, 2, True, "ghost", "norms"),
        (ZERO, 2, True, "batch", r"distributed\.engine=ds keeps gradients to itself; take ddp"),
        (ZERO, 1, True, "batch", r"distributed\.engine=ds keeps gradients to itself; take ddp"),
    ],
)
def test_it_takes_what_the_run_has(
    engine: Owner, ranks: int, several: bool, norm: str, chosen: str
) -> None:
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(3))
    if norm == "ghost":
        convert_batch_norm(model, "ghost", ghost_size=4)
    means = Means(model, engine, World(0, ranks, 0, ranks), several)
    if chosen in SOURCES_OF_ALL:
        assert means.choose("auto") == chosen
        return
    with pytest.raises(UserError, match=chosen):
        means.choose("auto")


def test_a_pass_that_continues_streams_is_not_split() -> None:
    model = torch.nn.Linear(2, 2)
    means = Means(model, DDP, World(), several=False, remembers=True)
    with pytest.raises(
        UserError, match=r"source=split: a stream's memory .*; set batch\.micro below"
    ):
        means.choose("split")
    assert Means(model, DDP, World(), several=True, remembers=True).choose("auto") == "first"
