"""Runs that landscapes are drawn of, left as finished ones are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from largebatch.models import ModelConfig, build_model, image_offers
from largebatch.nn import NormConfig
from largebatch.record import RunDirectory
from largebatch.train import checkpoint
from largebatch.train.parse import dump, parse


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that we are in, with a small data set."""
    random = np.random.default_rng(0)
    x, y = random.integers(0, 255, (24, 8, 8), np.uint8), np.arange(24) % 2
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x[:16], y_test=y[:16])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def make_run(folder: Path) -> Callable[..., Path]:
    """Return a function that leaves what a finished run leaves, its weights untrained."""

    def make(name: str, seed: int = 0, finished: bool = True, model: str = "c1") -> Path:
        directory = RunDirectory(folder / name)
        directory.create()
        options = [f"--model.name={model}", "--precision.compute=fp64"]
        keys = ["--data.name=arrays", f"--data.root={folder / 'd.npz'}", "--batch.size=8", *options]
        directory.write_config(dump(parse(keys)))
        offers = image_offers(2, (1, 8, 8))
        built = build_model(ModelConfig(name=model), NormConfig(), offers, seed=seed).double()
        checkpoint.save_weights(directory.weights, built.state_dict())
        if finished:
            directory.write_summary({"loss": 1.0, "samples": 24, "steps": 3})
        line = {"samples": 8, "step": 1, "epoch": 1.0, "split": "val", "loss": 1.0, "top1": 0.5}
        directory.metrics.write_text(json.dumps(line) + "\n")
        return directory.path

    return make
