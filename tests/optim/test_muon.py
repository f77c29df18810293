"""Muon with its auxiliary AdamW: who takes what, and that each steps as torch's own does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from largebatch._errors import UserError
from largebatch.optim import MuonWithAuxiliary, OptimConfig, build_optimizer


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(9, 8), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 3)
    )


def named(model: nn.Module) -> list[dict[str, object]]:
    matrices = {"1.weight", "3.weight"}
    return [
        {"params": [(n, p) for n, p in model.named_parameters() if (n in matrices) == muon]}
        | {"muon": muon, "name": str(muon)}
        for muon in (True, False)
    ]


def test_steps_equal_torchs_two_optimizers() -> None:
    ours, theirs = net(), net()
    both = MuonWithAuxiliary(named(ours), lr=0.02, weight_decay=0.1, momentum=0.9)
    matrices, rest = ([p for _, p in group["params"]] for group in named(theirs))
    muon = torch.optim.Muon(
        matrices, lr=0.02, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(rest, lr=0.02, weight_decay=0.1)
    words = torch.arange(9)
    for _ in range(5):
        for model, steppers in ((ours, [both]), (theirs, [muon, adamw])):
            model.zero_grad()
            model(words).square().sum().backward()
            for stepper in steppers:
                stepper.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


def test_hidden_matrices_go_to_muon_and_the_rest_to_adamw() -> None:
    model = nn.ModuleDict(
        {
            "embed": nn.Embedding(9, 8),
            "conv": nn.Conv2d(3, 4, 3),
            "hidden": nn.Linear(8, 8),
            "norm": nn.LayerNorm(8),
            "head": nn.Linear(8, 3),
        }
    )
    optimizer = build_optimizer(OptimConfig(name="muon", lr=0.01, weight_decay=0.1), model)
    taken = {name: g["muon"] for g in optimizer.param_groups for name in g["param_names"]}
    assert [name for name, muon in taken.items() if muon] == ["hidden.weight"]
    assert set(taken) == {name for name, _ in model.named_parameters()}
    decays = {name: g["weight_decay"] for g in optimizer.param_groups for name in g["param_names"]}
    assert decays["hidden.weight"] == decays["conv.weight"] == 0.1
    assert decays["norm.weight"] == decays["hidden.bias"] == 0.0


def test_the_only_matrix_goes_to_muon_and_a_model_without_one_is_refused() -> None:
    config = OptimConfig(name="muon")
    conv = nn.Conv2d(3, 4, 3)
    optimizer = build_optimizer(config, nn.Sequential(conv, nn.Flatten(), nn.Linear(4, 2)))
    matrices = [name for g in optimizer.param_groups if g["muon"] for name in g["param_names"]]
    assert matrices == ["2.weight"]
    with pytest.raises(UserError, match="no matrix among the parameters"):
        build_optimizer(config, conv)


def test_rates_set_on_the_groups_reach_both() -> None:
    model = net()
    both = MuonWithAuxiliary(named(model), lr=0.02)
    state = both.state_dict()
    both.load_state_dict(state)
    before = [p.detach().clone() for p in model.parameters()]
    for group in both.param_groups:
        group["lr"] = 0.0
    model(torch.arange(9)).square().sum().backward()
    both.step()
    for a, b in zip(model.parameters(), before, strict=True):
        assert torch.equal(a, b)
