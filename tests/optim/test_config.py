"""Values of the section ``optim`` that cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from largebatch._errors import UserError
from largebatch.optim import OptimConfig
from largebatch.schedule import Duration


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": -0.1}, "optim.lr=-0.1"),
        ({"lr": float("nan")}, "optim.lr=nan"),
        ({"lr": float("inf")}, "optim.lr=inf"),
        ({"momentum": 1.5}, "optim.momentum=1.5: a number from 0 to 1"),
        ({"dampening": -0.5}, "optim.dampening=-0.5"),
        ({"weight_decay": -1e-4}, "optim.weight_decay=-0.0001"),
        ({"betas": (0.9, 1.0)}, r"optim.betas=\[0.9, 1.0\]"),
        ({"eps": -1.0}, "optim.eps=-1.0"),
        ({"clip_norm": 0.0}, "optim.clip_norm=0.0"),
        ({"clip_norm": float("nan")}, "optim.clip_norm=nan"),
        ({"nesterov": True, "momentum": 0.0}, "optim.nesterov=true"),
        ({"nesterov": True, "dampening": 0.5}, "optim.nesterov=true"),
        ({"momentum_correction": True}, "optim.momentum_correction=true"),
        ({"dampen_first_step": True}, "optim.dampen_first_step=true"),
        ({"momentum_half_life": Duration.parse("0ep")}, "optim.momentum_half_life=0ep"),
    ],
)
def test_impossible_values_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        OptimConfig(**change).check()


def test_the_defaults_pass() -> None:
    OptimConfig().check()
