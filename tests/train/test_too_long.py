"""Durations of other sections that outlast the run are said among the remarks."""

from __future__ import annotations

import pytest
import torch

from largebatch.processes import World
from largebatch.train.build import build
from largebatch.train.parse import parse


def remarks(*arguments: str) -> list[str]:
    config = parse(["--data.limit=64", "--schedule.length=2ep", *arguments])
    parts = build(config, World(), torch.device("cpu"))
    return [line for line in parts.remarks if "longer than the run" in line]


@pytest.mark.parametrize(
    ("key", "value", "more"),
    [
        ("ema.half_life", "3ep", []),
        ("ema.half_life", "50st", []),
        ("telemetry.every", "9st", []),
        ("telemetry.every", "1ksa", []),
        ("optim.transition_center", "5ep", ["--optim.name=rmsprop_warmup"]),
    ],
)
def test_what_outlasts_the_run_is_said(key: str, value: str, more: list[str]) -> None:
    (line,) = remarks(f"--{key}={value}", *more)
    assert f"{key}={value}" in line


def test_what_ends_with_the_run_is_not() -> None:
    assert remarks("--ema.half_life=2ep", "--telemetry.every=2st") == []
