"""Runs that begin at another one's checkpoint, and the checkpoints that are kept for them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from largebatch._errors import RunFailure, UserError
from largebatch.processes.lifetime import StopRequest
from largebatch.record import RunDirectory, read_metrics
from largebatch.schedule import Duration, PhaseConfig
from largebatch.train import Outcome, checkpoint, run, session
from largebatch.train.branch import read_parent
from largebatch.train.build import build
from largebatch.train.config import Config
from largebatch.train.continuation import choose_directory, what_is_there
from largebatch.train.named import Named, beyond, name_of
from largebatch.train.parse import parse
from largebatch.train.trainer import Trainer

# 200 samples are steps of 64, 64, 64 and 8; four epochs are 16 steps.
SHORT = [
    "--data.limit=200",
    "--batch.size=64",
    "--norm.kind=ghost",
    "--norm.ghost_size=8",
    "--optim.lr=0.05",
    "--ema.half_life=1ep",
    "--schedule.length=4ep",
    "--checkpoint.at=[0ep, 2ep, 6st, 50%, 99ep]",
]


def config(directory: Path, *arguments: str) -> Config:
    return parse([f"--run.dir={directory}", *SHORT, *arguments])


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A finished run that has kept checkpoints on its way."""
    return run(config(tmp_path_factory.mktemp("parent") / "run", "--run.name=the-parent"))


@pytest.fixture
def stop(monkeypatch) -> StopRequest:
    """A caller's request, that comes in the second step of a session."""
    request, real, taken = StopRequest(), Trainer.step, []

    def step(trainer, share):
        taken.append(share)
        if len(taken) == 2:
            request.ask("the test")
        return real(trainer, share)

    monkeypatch.setattr(Trainer, "step", step)
    return request


def test_checkpoints_that_stay(parent: Outcome) -> None:
    folder = parent.directory / "checkpoints"
    kept = {"at-0ep": 0, "at-6st": 328, "at-2ep": 400, "at-50%": 400}
    assert checkpoint.named(folder) == kept == parent.summary["kept_checkpoints"]
    ordinary = [path for path in folder.iterdir() if path.name.startswith("samples-")]
    assert len(ordinary) == 2, "keep counts them alone"
    assert parent.checkpoint("2ep") == folder / "at-2ep"
    assert checkpoint.load(parent.checkpoint("50%"))["position"]["steps"] == 8
    with pytest.raises(RunFailure, match=r"at-3ep.*has kept at-0ep, at-6st"):
        parent.checkpoint("3ep")


def test_places_beyond_the_end_are_said(parent: Outcome) -> None:
    parts = build(config(parent.directory, "--checkpoint.at=[99ep, 17st, 16st, 100%]"),
                  *_alone())  # fmt: skip
    said = [line for line in parts.remarks if "checkpoint.at" in line]
    assert [line.split()[1] for line in said] == ["99ep", "17st"]
    assert all("never comes: the run ends at 800 samples" in line for line in said)


def _alone():
    from largebatch.processes import World

    return World(), torch.device("cpu")


def test_names_are_due_at_the_first_boundary_at_or_past_them(tmp_path: Path) -> None:
    made = config(tmp_path, "--batch.plan=[{'until': '1ep', 'size': 64}, {'size': 32}]")
    assert isinstance(made.batch.plan[0], PhaseConfig)
    clock = build(made, *_alone()).schedule.clock
    named = Named([Duration.parse(t) for t in ("65sa", "5st", "64sa", "999st")], clock)
    assert named.due(64) == ["at-64sa"]
    named.passed = 64
    assert named.due(128) == ["at-65sa"]
    named.passed = 200
    assert named.due(232) == ["at-5st"]
    named.passed = 232
    assert named.due(800) == []
    assert beyond(Duration.parse("999st"), clock) and not beyond(Duration.parse("4ep"), clock)
    assert "/" not in name_of(Duration.parse("1ep") * 1) and name_of(Duration(1, "ep")) == "at-1ep"


def test_a_name_is_complete_before_the_checkpoint_that_a_run_goes_on_from(tmp_path, monkeypatch):
    state = {"position": {"samples": 10, "steps": 1}, "t": torch.ones(3)}
    renamed = []
    real = Path.rename

    def rename(path, target):
        renamed.append(Path(target).name)
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    checkpoint.save(tmp_path, 10, state, keep=1, names=["at-1ep"])
    assert renamed == ["at-1ep", "samples-000000000010"]
    files = [os.stat(tmp_path / name / checkpoint.TENSORS) for name in renamed]
    assert files[0].st_ino == files[1].st_ino, "shared, not copied"
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(1, "no links")))
    checkpoint.save(tmp_path, 10, state, keep=1, names=["at-1ep"])  # again, after a kill
    for samples in (20, 30):
        checkpoint.save(tmp_path, samples, state, keep=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["at-1ep", "samples-000000000030"]
    assert torch.equal(checkpoint.load(tmp_path / "at-1ep")["t"], torch.ones(3))


def test_a_branch_of_the_same_config_ends_as_its_parent(parent: Outcome, tmp_path: Path) -> None:
    start = parent.checkpoint("2ep")
    branch = run(config(tmp_path / "branch"), start=start)
    assert branch.finished and branch.summary["weights_sha256"] == parent.summary["weights_sha256"]
    assert branch.summary["parent"] == {
        "checkpoint": str(start), "run": "the-parent", "samples": 400, "steps": 8,
    }  # fmt: skip
    assert parent.summary["parent"] is None
    lines = read_metrics(tmp_path / "branch" / "metrics.jsonl")
    train = [line["step"] for line in lines if line["split"] == "train"]
    assert train == list(range(9, 17)), "its own records alone"
    validations = [line["samples"] for line in lines if line["split"] == "val"]
    assert validations == [400, 600, 800], "and it is judged where it begins"
    state = checkpoint.load(tmp_path / "branch" / "checkpoints" / "samples-000000000600")
    whole = checkpoint.load(parent.directory / "checkpoints" / "samples-000000000600")
    assert state["position"]["seconds"] < branch.summary["wall_seconds"]
    assert all(torch.equal(state["average"][n], t) for n, t in whole["average"].items())


def test_a_branch_has_the_settings_of_its_own_config(parent: Outcome, tmp_path: Path) -> None:
    changes = ["--optim.momentum=0.5", "--optim.weight_decay=0.01", "--batch.size=32"]
    branch = run(config(tmp_path / "branch", *changes), start=parent.checkpoint("2ep"))
    assert branch.steps == 8 + 2 * 7  # 200 samples are seven steps of 32 and less
    newest = checkpoint.newest_valid(tmp_path / "branch" / "checkpoints", print)
    group = checkpoint.load(Path(newest))["optimizer"]["param_groups"][0]
    assert group["momentum"] == 0.5 and group["weight_decay"] == 0.01


def test_an_average_of_another_half_life_begins_anew(parent: Outcome, tmp_path: Path) -> None:
    start = parent.checkpoint("2ep")
    other = config(tmp_path / "other", "--ema.half_life=200sa")
    kept = config(tmp_path / "kept")
    for made, anew in ((other, True), (kept, False)):
        branch = run(made, start=start)
        lines = read_metrics(branch.directory / "metrics.jsonl")
        first = next(line for line in lines if line["split"] == "val")
        assert first["samples"] == 400
        assert (first["ema_loss"] == first["loss"]) is anew


def test_what_instruments_keep_travels(parent: Outcome, tmp_path: Path, monkeypatch) -> None:
    from largebatch.train import session

    taken = {}
    state = checkpoint.load(parent.checkpoint("2ep"))
    state["instruments"] = {"weight_distance": {"w0": torch.ones(2)}}
    start = checkpoint.save(tmp_path / "other", 400, state, keep=1)
    monkeypatch.setattr(session.Trainer, "resume", lambda _, state: taken.update(state))
    monkeypatch.setattr(session.Trainer, "run", lambda *_: False)
    run(config(tmp_path / "branch"), start=start)
    assert torch.equal(taken["instruments"]["weight_distance"]["w0"], torch.ones(2))
    position = taken["position"]
    assert (position["samples"], position["steps"]) == (400, 8)
    assert (position["seconds"], position["evaluated"]) == (0.0, 0)
    assert position["last"] is None and position["reached"] is None


def test_a_stopped_branch_goes_on_from_its_own(parent: Outcome, tmp_path: Path, stop) -> None:
    start, made = parent.checkpoint("2ep"), config(tmp_path / "branch")
    stopped = run(made, start=start, stop=stop)
    assert not stopped.finished and stopped.summary is None and 400 < stopped.samples < 800
    assert read_parent(RunDirectory(tmp_path / "branch"))["samples"] == 400
    whole = run(made, start=start)
    assert whole.summary["weights_sha256"] == parent.summary["weights_sha256"]
    assert whole.summary["parent"]["checkpoint"] == str(start)
    steps = [line["step"] for line in read_metrics(tmp_path / "branch/metrics.jsonl")
             if line["split"] == "train"]  # fmt: skip
    assert steps == list(range(9, 17))


@pytest.mark.parametrize("given", [True, False])
def test_one_stopped_before_it_saved_branches_off_again(parent, tmp_path, given, stop):
    """Also where the command does not say from where: its directory does."""
    start, made = parent.checkpoint("2ep"), config(tmp_path / "branch")
    run(made, start=start, stop=stop)
    shutil.rmtree(tmp_path / "branch" / "checkpoints")
    if given:
        made.checkpoint.resume = str(start)
    found = what_is_there(made, RunDirectory(tmp_path / "branch"))
    assert found == {"summary": None, "checkpoint": str(start), "branch": True}


def test_another_checkpoint_stands_in_for_lost_ones(parent: Outcome, tmp_path: Path) -> None:
    """`checkpoint.resume=PATH` in a directory whose run has lost its own: no branch."""
    copy = tmp_path / "run"
    shutil.copytree(parent.directory, copy)
    (copy / "summary.json").unlink()
    shutil.rmtree(copy / "checkpoints")
    made = config(copy, f"--checkpoint.resume={parent.checkpoint('2ep')}")
    found = what_is_there(made, RunDirectory(copy))
    assert found["checkpoint"] == str(parent.checkpoint("2ep")) and not found["branch"]
    again = run(made)
    assert again.summary["weights_sha256"] == parent.summary["weights_sha256"]
    assert again.summary["parent"] is None
    steps = [line["step"] for line in read_metrics(copy / "metrics.jsonl")
             if line["split"] == "train"]  # fmt: skip
    assert steps == list(range(1, 17))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--model.name=f1"], "does not fit this run: model"),
        (["--model.num_classes=12"], r"shape \(10, 64\), here \(12, 64\)"),
        (["--schedule.length=1ep"], "position.samples: 400 of 200 samples"),
        (["--optim.name=adamw"], "optim.name=adamw: the checkpoint holds the state of sgd"),
        (["--precision.compute=fp64"], "does not fit this run: model"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(parent, tmp_path, changes, words):
    with pytest.raises(UserError, match=words) as error:
        run(config(tmp_path / "branch", *changes), start=parent.checkpoint("2ep"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "branch").exists()


def test_a_start_is_not_another(parent: Outcome, tmp_path: Path, stop) -> None:
    made = config(tmp_path / "branch")
    run(made, start=parent.checkpoint("2ep"), stop=stop)
    with pytest.raises(UserError, match=r"began at .*at-2ep; use that"):
        run(made, start=parent.checkpoint("6st"))
    with pytest.raises(UserError, match=r"began at its first sample"):
        run(config(parent.directory), start=parent.checkpoint("2ep"))
    with pytest.raises(UserError, match=r"checkpoint.resume=.*the folder of a checkpoint"):
        run(config(tmp_path / "other"), start=tmp_path / "nowhere")


def test_a_run_does_not_go_on_in_the_directory_of_a_branch(parent, tmp_path, monkeypatch, stop):
    monkeypatch.chdir(tmp_path)
    made = parse([*SHORT])
    old = Path("runs/digits_cnn-digits-20200101-000000")
    run(parse([f"--run.dir={old}", *SHORT]), start=parent.checkpoint("2ep"), stop=stop)
    assert choose_directory(made) != old
    (old / "parent.json").unlink()
    assert choose_directory(made) == old


def test_a_damaged_note_of_the_parent_is_one_line(parent: Outcome, tmp_path: Path, stop) -> None:
    made = config(tmp_path / "branch")
    run(made, start=parent.checkpoint("2ep"), stop=stop)
    for text in ("[]", "{", json.dumps({"checkpoint": 3, "samples": 1})):
        (tmp_path / "branch" / "parent.json").write_text(text)
        with pytest.raises(UserError, match=r"parent.json: damaged"):
            run(made)


def test_a_finished_run_starts_no_ranks(parent: Outcome, monkeypatch, capsys) -> None:
    def never(*_: object) -> int:
        raise AssertionError("ranks were started")

    monkeypatch.setattr(session, "launch_local_ranks", never)
    again = run(config(parent.directory, "--run.name=the-parent", "--run.nproc=2"))
    assert again.finished and again.summary == parent.summary
    assert "this run is finished (top1 " in capsys.readouterr().out
    with pytest.raises(UserError, match=r"optim.lr=0.1: .* was started with 0.05"):
        run(config(parent.directory, "--run.name=the-parent", "--run.nproc=2", "--optim.lr=0.1"))


@pytest.mark.slow
def test_the_command_branches_by_its_key(parent: Outcome, train) -> None:
    """On two ranks, and goes on on one."""
    start = parent.checkpoint("2ep")
    done = train("branch", *SHORT, "--precision.compute=fp32", f"--checkpoint.resume={start}",
                 nproc=2)  # fmt: skip
    assert f"branching off at 400 of 800 samples, from {start}" in done.output
    assert done.summary["parent"]["samples"] == 400
    assert done.summary["world_size"] == 2
    again = train("branch", *SHORT, f"--checkpoint.resume={start}")
    assert "this run is finished (top1 " in again.output
