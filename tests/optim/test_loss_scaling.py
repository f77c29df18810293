"""Who unscales: the step, or whoever calls it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from largebatch import _ops
from largebatch.optim import LAMB, LARS, SGD, SGDW, Offload, OptimConfig, build_optimizer
from largebatch.optim import clip_gradients as clip

compiled = pytest.mark.skipif(
    not _ops.is_compiled("sgd_", torch.device("cpu")), reason="needs the compiled ops"
)
KINDS: dict[str, Any] = {"sgd": SGD, "sgdw": SGDW, "lars": LARS, "lamb": LAMB}


def handles_unscaling(optimizer: torch.optim.Optimizer) -> bool:
    """Ask as torch's GradScaler does, and Lightning before it clips."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


@pytest.mark.parametrize("name", KINDS)
def test_it_is_the_callers_unless_asked_for(name: str) -> None:
    """As with torch's own: fused=True alone unscales in the step."""
    params = [nn.Parameter(torch.ones(2))]
    for fused in (None, False):
        optimizer = KINDS[name](params, fused=fused)
        assert not handles_unscaling(optimizer) and not optimizer.unscales
        optimizer.unscales = True
        assert handles_unscaling(optimizer)
        assert Offload(optimizer).unscales
    if _ops.is_compiled("sgd_", torch.device("cpu")):
        assert KINDS[name](params, fused=True).unscales


@pytest.mark.parametrize("name", KINDS)
def test_a_run_leaves_it_to_the_step(name: str) -> None:
    assert build_optimizer(OptimConfig(name=name), nn.Linear(2, 2)).unscales


@pytest.mark.parametrize("clipped", ["theirs", "ours", "no"])
@pytest.mark.parametrize("unscales", [True, False])
@pytest.mark.parametrize("name", KINDS)
def test_under_a_scaler_both_take_the_same_steps(name: str, unscales: bool, clipped: str) -> None:
    """With infinities, and clipping between unscaling and step as Lightning does it."""
    model, plain = (nn.Linear(3, 2) for _ in range(2))
    plain.load_state_dict(model.state_dict())
    optimizer, expected = (KINDS[name](m.parameters(), lr=0.05) for m in (model, plain))
    optimizer.unscales = unscales
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    for step in range(5):
        inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        for m, o in ((model, optimizer), (plain, expected)):
            o.zero_grad()
            loss = m(inputs).square().sum()
            (scaler.scale(loss) if m is model else loss).backward()
        if step == 2:
            next(model.parameters()).grad[0] = math.inf
        if clipped != "no":
            scaler.unscale_(optimizer)
            if clipped == "theirs":
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
            elif step != 3:  # nothing of the skipped step's factor may be left then
                clip(optimizer, 0.5)
                clip(expected, 0.5)
        scaler.step(optimizer)
        scaler.update()
        if step != 2:
            expected.step()
    assert len(calls) == (5 if unscales else 4)  # accelerate counts skipped steps by this
    assert scaler.get_scale() == 2.0**9
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
