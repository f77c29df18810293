"""A norm takes the ghosts that the step was divided into, wherever samples are missing."""

from __future__ import annotations

import pytest
import torch

from largebatch.nn import GhostBatchNorm, L1BatchNorm, ghost_place, step_end

SIZES = [(8, 8, 8), (8, 8, 5), (8, 9), (5,), (8, 6, 8), (7, 8, 3), (3, 8)]


def by_hand(norm: torch.nn.Module, x: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
    """Normalise ghost by ghost, each in a place of its own."""
    done = []
    for number, part in enumerate(x.split(sizes)):
        with ghost_place(number, len(sizes)):
            done.append(norm(part))
    return torch.cat(done)


@pytest.mark.parametrize("kind", [GhostBatchNorm, L1BatchNorm])
@pytest.mark.parametrize(
    "sizes", [(8, 8, 8), (8, 8, 5), (8, 9), (5,), (8, 6, 8), (7, 8, 3), (3, 8)]
)
@pytest.mark.parametrize("residual", [False, True])
def test_sizes_are_those_of_the_place(kind, sizes, residual):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(sum(sizes), 3, 2, 2, generator=generator, dtype=torch.float64)
    added = torch.randn(x.shape, generator=generator, dtype=torch.float64) if residual else None
    ours, hand = (kind(3, ghost_size=8, dtype=torch.float64) for _ in range(2))
    expected = by_hand(hand, x, sizes)
    expected = expected if added is None else expected + added
    step_end(hand, len(sizes))
    leaf = x.clone().requires_grad_()
    with ghost_place(0, len(sizes), sizes):
        y = ours(leaf, added)
    step_end(ours, len(sizes))
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(ours.running_mean, hand.running_mean)
    torch.testing.assert_close(ours.running_var, hand.running_var)
    (gradient,) = torch.autograd.grad(y.square().sum(), leaf)
    again = x.clone().requires_grad_()
    whole = by_hand(hand, again, sizes)
    whole = whole if added is None else whole + added
    torch.testing.assert_close(gradient, torch.autograd.grad(whole.square().sum(), again)[0])


def test_without_sizes_a_norm_divides_by_its_own_ghost_size():
    x = torch.randn(20, 3, dtype=torch.float64)
    ours, hand = (GhostBatchNorm(3, ghost_size=8, dtype=torch.float64) for _ in range(2))
    with ghost_place(0, 3):
        y = ours(x)
    torch.testing.assert_close(y, by_hand(hand, x, (8, 8, 4)))
    with ghost_place(0, 3, (2, 2)):  # of other rows than these: a norm inside of a model's own cut
        torch.testing.assert_close(ours(x), y)
