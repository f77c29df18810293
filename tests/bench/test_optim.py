"""The optimizer benchmark: every contender steps or is listed with its reason."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from largebatch._errors import UserError
from largebatch.bench import optim, run
from largebatch.bench.optim_peers import PEERS, Peer

SHAPES = [(64, 3, 3, 3), (64,), (10, 64), (10,)]


def absent(params: list[nn.Parameter]) -> object:
    raise ImportError("No module named 'absent'")


def test_contenders_are_timed_or_listed_with_the_reason(monkeypatch):
    monkeypatch.setattr(optim, "MODELS", {"small": lambda: SHAPES})
    quick = [p for p in PEERS if p.name.startswith(("torch", "largebatch"))]
    monkeypatch.setattr(optim, "PEERS", [*quick, Peer("nobody", "lars", absent)])
    record = optim.run([], seconds=0.002, rounds=2)
    rows = {row["optimizer"]: row for row in record.rows}
    assert rows["nobody"]["not run"] == "ImportError: No module named 'absent'"
    assert rows["torch SGD, fused"]["ratio"] == rows["torch AdamW, fused"]["ratio"] == 1.0
    for peer in quick:
        row = rows[peer.name]
        assert 0 < row["best"] <= row["ms"] + 0.01 and row["steps"] >= 2


def spoiler(params: list[nn.Parameter]) -> object:
    return lambda: [param.grad.mul_(0.1) for param in params]


def test_a_contender_that_writes_gradients_spoils_nobodys_step(monkeypatch):
    params = [nn.Parameter(torch.randn(s)) for s in SHAPES]
    for param in params:
        param.grad = torch.randn(param.shape)
    before = [param.grad.clone() for param in params]
    times, _ = optim._alternate([Peer("spoiler", "lars", spoiler)], params, 0.001, 2)
    assert all(len(found) >= 2 for found in times.values())
    assert all(torch.equal(a, p.grad) for a, p in zip(before, params, strict=True))


def test_every_contender_moves_the_parameters():
    for peer in PEERS:
        torch.manual_seed(0)
        params = [nn.Parameter(torch.randn(s)) for s in SHAPES]
        for param in params:
            param.grad = torch.randn(param.shape)
        before = [param.detach().clone() for param in params]
        if "compiled" in peer.name:
            continue  # compiling takes half a minute; the benchmark itself runs it
        try:
            peer.make(params)()
        except (ImportError, RuntimeError):
            continue
        assert not any(torch.equal(a, b) for a, b in zip(before, params, strict=True)), peer.name


@pytest.mark.parametrize(
    ("name", "millions"), [("resnet50", 25.6), ("vit_b_16", 86.6), ("bert_large", 335.1)]
)
def test_the_tensors_are_those_of_the_models(name, millions):
    count = sum(torch.Size(shape).numel() for shape in optim.MODELS[name]())
    assert count / 1e6 == pytest.approx(millions, abs=0.1)


def test_an_unknown_model_is_refused():
    with pytest.raises(UserError, match="--models 'resnet51': choose from resnet50"):
        run(["optim", "--models", "resnet51"])
