"""Which parameters decay."""

from __future__ import annotations

import torch
from torch import nn

from largebatch.nn import GhostBatchNorm
from largebatch.optim import SGD, describe_groups, param_groups


class WideNorm(nn.Module):
    """A norm with a two-dimensional affine part, a tied weight and a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.linear.weight
        self.norm = nn.LayerNorm((3, 4))
        self.ghost = GhostBatchNorm(4, 2)
        self.frozen = nn.Parameter(torch.zeros(4, 4), requires_grad=False)


def names(group: dict) -> list[str]:
    return [name for name, _ in group["params"]]


def test_biases_and_norms_do_not_decay() -> None:
    decay, rest = param_groups(WideNorm(), 0.1)
    assert names(decay) == ["linear.weight"]
    assert names(rest) == ["linear.bias", "norm.weight", "norm.bias", "ghost.weight", "ghost.bias"]
    assert (decay["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert (decay["name"], rest["name"]) == ("decay", "no_decay")


def test_all_decay_on_request_and_one_group_without_decay() -> None:
    for groups, decay in (
        (param_groups(WideNorm(), 0.1, True), 0.1),
        (param_groups(WideNorm(), 0.0), 0.0),
    ):
        assert len(groups) == 1
        assert len(groups[0]["params"]) == 6
        assert groups[0]["weight_decay"] == decay


def test_a_group_without_members_is_left_out() -> None:
    assert [g["name"] for g in param_groups(nn.Linear(2, 2, bias=False), 0.1)] == ["decay"]


def test_the_printed_lines_name_size_and_decay() -> None:
    model = nn.Linear(30, 40)
    lines = describe_groups(SGD(param_groups(model, 1e-4), lr=0.1))
    assert lines == [
        "decay: 1 tensors, 1,200 parameters, weight decay 0.0001",
        "no_decay: 1 tensors, 40 parameters, weight decay 0",
    ]
