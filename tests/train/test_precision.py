"""Training, evaluation in the run and `largebatch eval` share one context of number formats."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from largebatch.cli import main

if TYPE_CHECKING:
    from tests.train.conftest import Train


@pytest.mark.parametrize("compute", ["fp32", "bf16", "fp16"])
def test_eval_gives_the_bits_of_the_runs_own_evaluation(
    train: Train, capsys: pytest.CaptureFixture[str], compute: str
) -> None:
    """Under bf16 and fp16 the run evaluated in float32, `eval` did not."""
    run = train(
        compute,
        *("--model.name=cifar_resnet20", "--data.name=digits", "--data.limit=256"),
        *("--norm.kind=ghost", "--norm.ghost_size=32", "--batch.size=96", "--optim.lr=0.1"),
        *("--schedule.length=2ep", f"--precision.compute={compute}", "--ema.half_life=200sa"),
    )
    capsys.readouterr()
    assert main(["eval", str(run.directory), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {name: run.summary[name] for name in found} == found
