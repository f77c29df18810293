"""`largebatch eval` of anybody's run, from anywhere: nothing of theirs runs unless asked for."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from largebatch.cli import main
from largebatch.models import ModelConfig, build_model, image_offers
from largebatch.nn import NormConfig
from largebatch.record import RunDirectory
from largebatch.train import checkpoint
from largebatch.train.continuation import choose_directory
from largebatch.train.parse import dump, parse

PLANTED = """\
open({mark!r}, "a").write("imported ")
import torch
from torch import nn

def data(split):
    open({mark!r}, "a").write(split + " ")
    images = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    held = torch.utils.data.TensorDataset(images, torch.arange(6) % 2)
    held.num_classes = 2
    return held

def model(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    x = np.random.default_rng(0).integers(0, 255, (8, 8, 8), np.uint8)
    y = np.arange(8) % 2
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    (tmp_path / "planted.py").write_text(PLANTED.format(mark=str(tmp_path / "mark")))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("planted", None)


def make_run(path: Path, *arguments: str) -> Path:
    """Leave what a finished run of two classes leaves, its weights untrained."""
    directory = RunDirectory(path)
    directory.create()
    directory.write_config(dump(parse(["--data.name=arrays", *arguments])))
    model = build_model(ModelConfig(), NormConfig(), image_offers(2, (1, 8, 8)), seed=0)
    checkpoint.save_weights(directory.weights, model.state_dict())
    line = {"samples": 8, "step": 1, "epoch": 1.0, "split": "val", "loss": 1.0, "top1": 0.5}
    directory.metrics.write_text(json.dumps(line) + "\n")
    return path


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, float]:
    capsys.readouterr()
    assert main(["eval", *arguments, "--json"]) == 0, capsys.readouterr().err
    found: dict[str, float] = json.loads(capsys.readouterr().out)
    return found


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(list(arguments)) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data.name", "shutil:rmtree"),
        ("data.name", "os:abort"),
        ("data.name", "planted:data"),
        ("model.name", "planted:model"),
        ("model.name", "no_such_module:f"),
    ],
)
def test_a_run_of_somebodys_runs_nothing(folder, capsys, name, value):
    (folder / "val").mkdir()
    run = make_run(folder / "runs" / "x-20260101-000000", f"--{name}={value}")
    line = refused(capsys, "eval", str(run))
    assert f"{name}={value!r}" in line and "--allow-imports" in line
    assert main(["report", str(run), "-o", str(folder / "r.html")]) == 0
    for number in ("1", "2"):  # what a resume looks for: a run with a checkpoint
        shutil.copytree(run, folder / "runs" / f"digits_cnn-digits-20260101-00000{number}")
        (folder / "runs" / f"digits_cnn-digits-20260101-00000{number}" / "checkpoints"
         / "samples-000000000008").mkdir()  # fmt: skip
    choose_directory(parse([]))
    assert (folder / "val").is_dir() and not (folder / "mark").exists()


def test_code_of_ones_own_when_asked_for(folder, capsys):
    run = make_run(folder / "run", "--data.name=planted:data", "--model.name=planted:model")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
    checkpoint.save_weights(run / "weights.safetensors", model.state_dict())
    assert evaluated(capsys, str(run), "--allow-imports")["count"] == 6
    assert (folder / "mark").read_text() == "imported val "


def test_what_is_no_data_set_is_not_called_even_then(folder, capsys):
    (folder / "val").mkdir()
    run = make_run(folder / "run", "--data.name=shutil:rmtree")
    assert "Python's own" in refused(capsys, "eval", str(run), "--allow-imports")
    assert (folder / "val").is_dir()


def test_from_another_folder(folder, capsys, monkeypatch):
    run = make_run(folder / "run", "--data.root=d.npz")
    here = evaluated(capsys, str(run))
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert evaluated(capsys, str(run)) == here
    assert evaluated(capsys, "../run") == here


def test_data_that_have_moved(folder, capsys):
    run = make_run(folder / "run", "--data.root=d.npz")
    before = evaluated(capsys, str(run))
    (folder / "d.npz").rename(folder / "null")
    line = refused(capsys, "eval", str(run))
    assert str(folder / "d.npz") in line and "--data.root DIR" in line
    assert evaluated(capsys, str(run), "--data.root", "null") == before
    assert evaluated(capsys, str(run), "--data.root=null") == before
    assert "none.npz" in refused(capsys, "eval", str(run), "--data.root=none.npz")


def test_a_relative_root_as_runs_wrote_it_before(folder, capsys, monkeypatch):
    run = make_run(folder / "run", "--data.root=d.npz")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["root"] = "d.npz"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    before = evaluated(capsys, str(run))
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert "--data.root DIR" in refused(capsys, "eval", str(run))
    assert evaluated(capsys, str(run), "--data.root=../d.npz") == before


def test_the_weights_it_began_with_may_be_gone(folder, capsys):
    """Evaluation reads the run's own weights: those it started from are not asked for."""
    run = make_run(folder / "run", "--data.root=d.npz", "--model.init_from=gone.safetensors")
    assert evaluated(capsys, str(run))["count"] == 8
