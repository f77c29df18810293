"""Optimizers load torch's compiler only where somebody else has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from largebatch.optim import optimizers
from largebatch.optim.exact import exact
from largebatch.optim.torch_optimizers import TorchOptimizer
from largebatch.optim.uncompiled import METHODS, uncompiled

TORCHS = {
    entry.name: entry.factory.kind
    for entry in optimizers
    if isinstance(entry.factory, TorchOptimizer)
}
RUNS = """
import sys
from largebatch.train import run
from largebatch.train.parse import parse
for name in ("sgd", "adamw"):
    options = [f"--optim.name={name}", "--schedule.length=4st", "--data.limit=64"]
    first = run(parse([f"--run.dir={name}", "--checkpoint.at=[2st]", *options]))
    second = run(parse([f"--run.dir={name}-from-2", *options]), start=first.checkpoint("2st"))
    assert second.steps == first.steps == 4
sys.exit(" ".join({"torch._dynamo", "sympy"} & {*sys.modules}) or None)
"""


def test_runs_do_not_load_the_compiler(tmp_path: Path) -> None:
    """Nor its symbolic shapes: they take as long as all of torch, and no run needs them.

    Torch's optimizers load the compiler as they are made, its backward pass the shapes where it is
    given a gradient.
    """
    subprocess.run([sys.executable, "-c", RUNS], cwd=tmp_path, check=True, timeout=300)


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("name", TORCHS)
def test_it_does_what_torchs_does(name: str, loaded: bool, monkeypatch) -> None:
    monkeypatch.setattr("largebatch.optim.uncompiled._is_loaded", lambda: loaded)
    grads = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    ended, calls = [], []
    for kind in (TORCHS[name], exact(TORCHS[name])):
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 5))
        optimizer = kind([weight], lr=0.1, weight_decay=0.01)
        optimizer.register_step_pre_hook(lambda *_: calls.append("step"))
        for grad in grads:
            weight.grad = grad.clone()
            optimizer.step()
            optimizer.zero_grad()
            assert weight.grad is None
            optimizer.load_state_dict(optimizer.state_dict())
        ended.append(weight.detach())
    assert torch.equal(*ended)
    assert len(calls) == 2 * len(grads)
    assert not ended[0].requires_grad


class Own(torch.optim.Optimizer):
    """An optimizer that brings methods of its own."""

    def __init__(self, params) -> None:
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure=None):
        assert not torch.is_grad_enabled()
        return "own step"

    def zero_grad(self, set_to_none: bool = True) -> str:  # type: ignore[override]
        return "own zero"


def test_what_a_class_brings_itself_stays() -> None:
    made = uncompiled(Own)([torch.nn.Parameter(torch.ones(1))])
    assert made.step() == "own step"
    assert made.zero_grad() == "own zero"
    assert {*vars(type(made))} & {*METHODS} == {*METHODS} - {"zero_grad"}
