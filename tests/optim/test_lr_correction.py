"""The rate that imitates weight decay: same directions, same losses, the paper's ratio."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from largebatch._errors import UserError
from largebatch.nn import fix_classifier
from largebatch.optim import SGD, OptimConfig, describe_groups, param_groups
from largebatch.optim.lr_correction import corrected_rate

DECAY = 0.02


def net(eps: float = 1e-30) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6, eps=eps), nn.ReLU(), nn.Flatten(),
        nn.Linear(96, 8), nn.BatchNorm1d(8, eps=eps), nn.ReLU(), nn.Linear(8, 3),
    ).double()  # fmt: skip


class Run:
    """Training on data and rates that depend on the step alone."""

    def __init__(self, correction: bool, momentum: float = 0.9, decay: float = DECAY,
                 eps: float = 1e-30) -> None:  # fmt: skip
        self.model = net(eps)
        groups = param_groups(self.model, decay, lr_correction=correction)
        self.optimizer = SGD(groups, lr=0.1, momentum=momentum)
        self.data = torch.Generator().manual_seed(1)
        self.done = 0

    def advance(self, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            rate = 0.06 + 0.05 * math.cos(self.done / 7)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            x = torch.randn(16, 2, 6, 6, generator=self.data, dtype=torch.float64)
            loss = F.cross_entropy(self.model(x), (x.sum((1, 2, 3)) > 0).long())
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
            self.done += 1
        return losses

    def rows(self) -> list[Tensor]:
        """Return the scale-invariant weights, a channel a row."""
        return [self.model[i].weight.detach().flatten(1) for i in (0, 4)]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_path_is_that_of_weight_decay(momentum: float) -> None:
    decayed, corrected = Run(False, momentum), Run(True, momentum)
    assert corrected.advance(60) == pytest.approx(decayed.advance(60), rel=1e-11)
    norm = corrected.optimizer.param_groups[-1]["decayed_norm"]
    assert norm < 0.95
    for mine, its in zip(corrected.rows(), decayed.rows(), strict=True):
        torch.testing.assert_close(F.normalize(mine), F.normalize(its), rtol=0, atol=1e-12)
        # Hoffer's factor |w|^2 / |w_decayed|^2 of every channel, without such a run.
        ratio = mine.square().sum(1) / its.square().sum(1)
        torch.testing.assert_close(ratio, torch.full_like(ratio, norm**-2), rtol=1e-11, atol=0)
    torch.testing.assert_close(corrected.model[7].weight, decayed.model[7].weight)
    neither = Run(False, momentum, decay=0.0)
    assert neither.advance(60) != pytest.approx(decayed.advance(60), rel=1e-2)


def test_the_eps_of_a_norm_disturbs_little() -> None:
    assert Run(True, eps=1e-5).advance(60) == pytest.approx(
        Run(False, eps=1e-5).advance(60), abs=1e-4
    )


def test_the_factor_is_the_published_one_to_first_order() -> None:
    group = SGD([nn.Parameter(torch.ones(1))], lr=1.0, imitated_decay=1e-3).param_groups[0]
    factors = [corrected_rate(group, 0.1) / 0.1 for _ in range(100)]
    expected = [(1 - 1e-4) ** -(2 * step) for step in range(100)]  # |w|^2 / |w_decayed|^2
    assert factors == pytest.approx(expected, rel=2e-4)
    assert group["decayed_norm"] == pytest.approx((1 - 1e-4) ** 100)


def test_it_goes_on_where_it_was_saved() -> None:
    whole = Run(True)
    whole.advance(5)
    model, state = copy.deepcopy(whole.model), copy.deepcopy(whole.optimizer.state_dict())
    generator = whole.data.get_state()
    expected = whole.advance(5)
    again = Run(True)
    again.model.load_state_dict(model.state_dict())
    again.optimizer.load_state_dict(state)
    again.data.set_state(generator)
    again.done = 5
    assert again.advance(5) == expected
    theirs = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1).state_dict()
    fresh = SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    fresh.load_state_dict(theirs)
    assert fresh.param_groups[0]["imitated_decay"] == 0.0


def test_a_skipped_step_does_not_count() -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = SGD([parameter], lr=0.1, imitated_decay=0.1)
    parameter.grad = torch.ones(3)
    optimizer.found_inf = torch.ones(())  # as torch's GradScaler does
    optimizer.step()
    assert optimizer.param_groups[0]["decayed_norm"] == 1.0
    assert torch.equal(parameter.detach(), torch.ones(3))
    optimizer.found_inf = torch.zeros(())
    optimizer.step()
    assert optimizer.param_groups[0]["decayed_norm"] == pytest.approx(0.99)


def test_groups() -> None:
    model = net()
    decay, rest, corrected = param_groups(model, DECAY, lr_correction=True)
    assert [n for n, _ in decay["params"]] == ["7.weight"]
    assert [n for n, _ in corrected["params"]] == ["0.weight", "4.weight"]
    assert len(rest["params"]) == 7
    assert describe_groups(SGD([corrected], lr=0.1)) == [
        "lr_correction: 2 tensors, 876 parameters, weight decay 0.02, imitated by the rate"
    ]
    fixed = param_groups(fix_classifier(model, "hadamard"), DECAY, lr_correction=True)
    assert [group["name"] for group in fixed] == ["no_decay", "lr_correction"]


@pytest.mark.parametrize(
    "options",
    [{"nesterov": True}, {"dampening": 0.5}, {"lr_inside_momentum": True}, {"clip_norm": 1.0},
     {"weight_decay": 0.0}],
)  # fmt: skip
def test_what_does_not_fit_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"optim\.lr_correction=true: needs"):
        OptimConfig(lr_correction=True, **{"weight_decay": 0.1, **options}).check()
    if "clip_norm" not in options and options.get("weight_decay") is None:
        with pytest.raises(UserError, match="SGD: imitated_decay"):
            SGD([nn.Parameter(torch.ones(1))], momentum=0.9, imitated_decay=0.1, **options)


def test_mistakes() -> None:
    with pytest.raises(UserError, match="SGD: imitated_decay takes the place of weight_decay"):
        SGD([nn.Parameter(torch.ones(1))], weight_decay=0.1, imitated_decay=0.1)
    with pytest.raises(UserError, match="SGD: imitated_decay=-1"):
        SGD([nn.Parameter(torch.ones(1))], imitated_decay=-1.0)
    with pytest.raises(UserError, match="no norm of the model"):
        param_groups(nn.Linear(2, 2), 0.1, lr_correction=True)
    wild = SGD([nn.Parameter(torch.ones(1))], lr=2.0, imitated_decay=0.6).param_groups[0]
    with pytest.raises(UserError, match="would turn the weights around"):
        corrected_rate(wild, 2.0)
