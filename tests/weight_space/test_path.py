"""Paths between networks, and their barriers."""

from __future__ import annotations

import pytest
import torch

from largebatch.weight_space import WeightPath, bezier, loss_barrier, path_losses, polychain

KINDS = {"polychain": polychain, "bezier": bezier}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bends", [2, 3, 4])
def test_ends_are_exact(kind: str, bends: int) -> None:
    torch.manual_seed(0)
    nets = [{"w": torch.randn(5), "n": torch.randn(2, 2)} for _ in range(bends)]
    path = WeightPath(nets, KINDS[kind])
    for t, end in ((0.0, nets[0]), (1.0, nets[-1])):
        assert all(torch.equal(path(t)[name], end[name]) for name in end)
    for t in (0.0, 0.2, 0.5, 0.77, 1.0):
        assert sum(KINDS[kind](bends, t)) == pytest.approx(1.0, abs=1e-15)


def test_two_bends_are_a_line_and_a_chain_meets_its_bends() -> None:
    nets = [{"w": torch.tensor([float(k * k)])} for k in range(3)]
    assert path_losses(lambda w: float(w["w"]), WeightPath(nets), [0.0, 0.25, 0.5, 0.75]) == [
        0.0,
        0.5,
        1.0,
        2.5,
    ]
    assert float(WeightPath(nets[1:], bezier)(0.25)["w"]) == 1.75
    assert float(WeightPath(nets, bezier)(0.5)["w"]) == 0.5 + 1.0


def test_a_barrier_is_the_excess_over_the_line_of_the_ends() -> None:
    assert loss_barrier([0.0, 0.5, 1.0], [1.0, 4.0, 3.0]) == 2.0
    assert loss_barrier([0.0, 0.5, 1.0], [1.0, 0.2, 3.0]) == 0.0
    assert loss_barrier([0.0, 1.0], [0.1, 0.3]) == 0.0
    assert loss_barrier([0.0, 0.3, 1.0], [0.1] * 3) >= 0.0
    with pytest.raises(ValueError, match="end to end"):
        loss_barrier([0.1, 1.0], [1.0, 1.0])
