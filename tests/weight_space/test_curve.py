"""Curves between networks: what moves, what stays, and where a step is taken."""

from __future__ import annotations

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import mse_loss

from largebatch.nn import GhostBatchNorm, ghost_place
from largebatch.optim import SGD
from largebatch.weight_space import (
    Curve,
    bezier,
    curve_place,
    loss_barrier,
    path_losses,
    polychain,
    recompute_statistics,
    train_curve,
    weights_of,
)


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 6), GhostBatchNorm(6, 4), nn.ReLU(), nn.Linear(6, 2)).double()


def curve_between(coefficients=bezier, bends: int = 3) -> Curve:
    first, last = network(1), network(2)
    return Curve(first, weights_of(first), weights_of(last), coefficients, bends, seed=7)


def test_it_begins_as_the_line_and_is_called_as_the_network() -> None:
    curve = curve_between()
    x = torch.randn(8, 3, dtype=torch.float64)
    for curve.at, end in ((0.0, network(1)), (1.0, network(2))):
        assert torch.equal(curve(x), end(x))
    before = [buffer.clone() for buffer in curve.buffers()]
    curve.eval()
    assert torch.equal(curve(x), network(2)(x))  # by the batch, and nothing is recorded
    assert all(map(torch.equal, curve.buffers(), before)) and not curve.bends[1].training
    line = [
        torch.lerp(a, b, 0.5)
        for a, b in zip(network(1).parameters(), network(2).parameters(), strict=True)
    ]
    for own, expected in zip(curve.bends[1].parameters(), line, strict=True):
        torch.testing.assert_close(own, expected)


def test_only_inner_bends_get_a_gradient() -> None:
    curve = curve_between(polychain, 4)
    moving = {name for name, p in curve.named_parameters() if p.requires_grad}
    assert moving == {
        n for n, _ in curve.named_parameters() if n.startswith(("bends.1.", "bends.2."))
    }
    curve.at = 0.1  # the second bend has no part of it, and is not left without a gradient
    curve(torch.randn(8, 3, dtype=torch.float64)).sum().backward()
    assert not any(p.grad.any() for p in curve.bends[2].parameters())
    assert any(p.grad.any() for p in curve.bends[1].parameters())


def test_a_step_has_one_place_whoever_takes_its_passes() -> None:
    curve = curve_between()
    x = torch.randn(4, 3, dtype=torch.float64)
    with ghost_place(0, 2, step=640):
        first = curve(x)
    with ghost_place(1, 2, step=640):
        assert torch.equal(curve(x), first)
    with ghost_place(0, 2, step=704):
        assert not torch.equal(curve(x), first)
    expected = {**dict(curve.bends[1].named_buffers()), **curve.path()(curve_place(7, 640))}
    torch.testing.assert_close(first, functional_call(network(1), expected, (x,)))
    places = [curve_place(0, step) for step in range(4000)]
    assert min(places) >= 0 and max(places) < 1 and abs(sum(places) / 4000 - 0.5) < 0.02


def test_training_lowers_the_barrier_and_keeps_the_ends() -> None:
    """The minima are a ring: a curve goes around the hill that the line goes over."""

    class Point(nn.Module):
        def __init__(self, angle: float) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([angle, 1.0], dtype=torch.float64))

        def forward(self) -> torch.Tensor:
            return (self.w.square().sum() - 2.0).square()

    first, last = Point(-1.0), Point(1.0)
    start, end = weights_of(first), weights_of(last)
    curve = Curve(first, start, end, seed=3)
    optimizer = SGD([p for p in curve.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    path = train_curve(curve, range(120), lambda model, _: model(), optimizer)
    assert torch.equal(path(0.0)["w"], start["w"]) and torch.equal(path(1.0)["w"], end["w"])
    places = torch.linspace(0, 1, 21, dtype=torch.float64).tolist()

    def loss(weights) -> float:
        return float(mse_loss(weights["w"].square().sum(), torch.tensor(2.0).double()))

    line = loss_barrier(places, path_losses(loss, Curve(first, start, end).path(), places))
    assert line > 0.9
    assert loss_barrier(places, path_losses(loss, path, places)) < 0.05 * line


def test_recomputed_statistics_are_the_mean_over_ghosts_and_change_nothing() -> None:
    model = network(1).eval()
    batches = [torch.randn(n, 3, dtype=torch.float64) for n in (8, 4)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = recompute_statistics(model, batches, lambda net, x: net(x))
    ghosts = [part for x in batches for part in model[0](x).detach().split(4)]
    torch.testing.assert_close(
        found["1.running_mean"], torch.stack([g.mean(0) for g in ghosts]).mean(0)
    )
    torch.testing.assert_close(
        found["1.running_var"], torch.stack([g.var(0) for g in ghosts]).mean(0)
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert recompute_statistics(nn.Linear(2, 2), [torch.zeros(1, 2)], lambda net, x: net(x)) == {}
