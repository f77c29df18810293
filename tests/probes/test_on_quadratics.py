"""Probes of curvature where it is known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from largebatch.optim import SGD
from largebatch.probes import Curvature, Forward, Moment, Replay, Sharpness, Side, StepRoom
from largebatch.probes import tail_index as index_of
from largebatch.probes.geometry import geometry
from largebatch.probes.hessian import Hessian
from largebatch.probes.lanczos import lanczos
from largebatch.probes.parameter_space import ParameterSpace
from largebatch.probes.sharpness import box_of, sharpness
from largebatch.probes.spectrum import quadrature
from largebatch.schedule import Clock, Step
from largebatch.schedule.plan import Phase

CLOCK = Clock(1000)
STEP = Step(0, 1, 0, 0, Phase(size=1))
Loss = Callable[[Tensor], Tensor]


class Weights(nn.Module):
    """A model that is nothing but its weights."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(values.clone())


class Known(Replay):
    """A loss of the weights alone; it counts the exchanges."""

    def __init__(self, model: Weights, loss: Loss) -> None:
        self.model, self._loss = model, loss
        self.forwards = self.gradients = 0

    def visit(self, forward: Forward) -> Tensor:
        raise NotImplementedError

    def loss(self) -> Tensor:
        self.forwards += 1
        return self._loss(self.model.w.detach()).double()

    def gradient(self, forward: Forward | None = None, sides: Sequence[Side] = ()) -> list[Tensor]:
        self.gradients += 1
        total = torch.zeros_like(self.model.w)
        for move, factor in sides or [(lambda: None, 1.0)]:
            move()
            with torch.enable_grad():
                (slope,) = torch.autograd.grad(self._loss(self.model.w), [self.model.w])
            total = total + factor * slope
        return [total]


class OfNet(Replay):
    """The squared error of a network."""

    def __init__(self, net: nn.Module, inputs: Tensor, targets: Tensor) -> None:
        self._net, self._inputs, self._targets = net, inputs, targets

    def visit(self, forward: Forward) -> Tensor:
        raise NotImplementedError

    def loss(self) -> Tensor:
        return (self._net(self._inputs) - self._targets).square().mean().detach()

    def gradient(self, forward: Forward | None = None, sides: Sequence[Side] = ()) -> list[Tensor]:
        loss = (self._net(self._inputs) - self._targets).square().mean()
        return list(torch.autograd.grad(loss, list(self._net.parameters())))


def known(matrix: Tensor, values: Tensor | None = None) -> tuple[Known, ParameterSpace]:
    start = torch.ones(len(matrix), dtype=matrix.dtype) if values is None else values
    model = Weights(start)
    return Known(model, lambda w: w @ matrix @ w / 2), ParameterSpace(model)


def symmetric(size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    half = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return (half + half.T) / 2


def moment_of(replay: Known) -> Moment:
    none: Any = None
    return Moment(
        STEP, 1, replay.model, none, none, none, none, none, replay=lambda: replay
    )  # fmt: skip


@pytest.mark.parametrize("rate", [0.001, 0.05, 0.19, 0.21])
def test_the_room_of_a_gradient_step_is_two_over_rate_and_curvature(rate: float) -> None:
    matrix = torch.diag(torch.tensor([10.0, 0.0], dtype=torch.float64))
    replay, _ = known(matrix)
    probe = StepRoom(replay.model, CLOCK)
    at = moment_of(replay)
    probe.before(at)
    before = replay.model.w.detach().clone()
    with torch.no_grad():
        replay.model.w -= rate * matrix @ replay.model.w
    after = replay.model.w.detach().clone()
    found = probe.measure(at)
    assert float(found["step_room"]) == pytest.approx(2 / (rate * 10), rel=1e-6)
    assert replay.forwards <= 6
    assert torch.equal(replay.model.w, after) and not torch.equal(before, after)
    said = probe.close()
    assert said is not None
    assert ("too large" in said) == (rate > 0.2) and ("noise or the schedule limits" in said) == (
        rate < 0.06
    )


def test_a_step_that_moved_nothing_has_no_room() -> None:
    replay, _ = known(symmetric(3))
    probe = StepRoom(replay.model, CLOCK)
    probe.before(moment_of(replay))
    assert probe.measure(moment_of(replay)) == {}
    assert probe.close() is None


def test_products_are_those_of_the_matrix_in_one_exchange() -> None:
    matrix = symmetric(30)
    replay, space = known(matrix)
    vector, before = space.random(3), space.weights()
    product = Hessian(space, replay)
    torch.testing.assert_close(product(vector), matrix @ vector, rtol=1e-8, atol=1e-8)
    assert replay.gradients == 1
    assert torch.equal(space.weights(), before)
    assert not product(torch.zeros_like(vector)).any()


def test_lanczos_finds_both_ends_and_says_how_far_off_it_is() -> None:
    matrix = symmetric(200)
    _, space = known(matrix)
    exact = torch.linalg.eigvalsh(matrix)
    ritz = lanczos(lambda v: matrix @ v, space.random(0), 80, space)
    torch.testing.assert_close(ritz.values[-5:], exact[-5:], rtol=1e-8, atol=0)
    torch.testing.assert_close(ritz.values[:3], exact[:3], rtol=1e-8, atol=0)
    residual = (matrix @ ritz.vectors.T - ritz.vectors.T * ritz.values).norm(dim=0)
    torch.testing.assert_close(residual, ritz.errors, rtol=1e-6, atol=1e-8)
    few = lanczos(lambda v: matrix @ v, space.random(0), 10, space)
    distance = (exact[:, None] - few.values).abs().min(0).values
    assert (distance <= few.errors + 1e-9).all()


def test_lanczos_ends_where_the_start_reaches_no_further() -> None:
    matrix = torch.diag(torch.tensor([3.0, 3.0, 1.0, 1.0], dtype=torch.float64))
    _, space = known(matrix)
    ritz = lanczos(lambda v: matrix @ v, space.random(0), 4, space)
    torch.testing.assert_close(ritz.values, torch.tensor([1.0, 3.0], dtype=torch.float64))
    torch.testing.assert_close(ritz.weights.sum(), torch.tensor(1.0, dtype=torch.float64))
    with pytest.raises(ArithmeticError, match="not finite"):
        lanczos(lambda v: v * math.nan, space.random(0), 4, space)


def test_the_density_has_the_moments_of_the_matrix() -> None:
    matrix = symmetric(120)
    _, space = known(matrix)
    found = quadrature(lambda v: matrix @ v, space, products=20, vectors=60, seed=0)
    for power, exact in ((1, matrix.trace() / 120), (2, matrix.square().sum() / 120)):
        mean, error = found.moment(power)
        assert abs(mean - float(exact)) < 3 * error and error < 1.0
    # A diagonal matrix has its exact trace under random signs.
    diagonal = torch.diag(torch.arange(1.0, 121, dtype=torch.float64))
    mean, error = quadrature(lambda v: diagonal @ v, space, 5, 3, 0).moment(1)
    assert mean == pytest.approx(60.5, rel=1e-12) and error < 1e-12


def test_warm_vectors_find_more_with_few_products() -> None:
    matrix = symmetric(400)
    replay, _ = known(matrix)
    optimizer = SGD(replay.model.parameters(), lr=0.1, momentum=0.9)
    probe = Curvature(replay.model, optimizer, CLOCK, seed=0, top=2, products=4)
    exact = float(torch.linalg.eigvalsh(matrix)[-1])
    errors = []
    for _ in range(12):
        found = {name: float(v) for name, v in probe.measure(moment_of(replay)).items()}
        errors.append(exact - found["curvature"])
    assert all(error > -1e-6 for error in errors) and errors[-1] < 0.2 * errors[0]
    assert found["curvature_times_rate"] == pytest.approx(0.1 * found["curvature"])
    assert found["curvature_bound"] == pytest.approx(3.8)
    assert 0 <= found["gradient_in_top"] <= 1
    again = Curvature(replay.model, optimizer, CLOCK, seed=0, top=2, products=4)
    again.check(probe.state())
    again.load(probe.state())
    next_ones = [float(p.measure(moment_of(replay))["curvature"]) for p in (probe, again)]
    assert next_ones[0] == next_ones[1]


@pytest.mark.parametrize(
    ("make", "bound", "scale"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), 2.0, None),
        (lambda p: SGD(p, lr=0.1, momentum=0.9), 3.8, None),
        (lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True), 3.8 / 2.8, None),
        (lambda p: torch.optim.Adam(p, lr=0.1, eps=1e-8), 38.0, "adam"),
        (lambda p: torch.optim.AdamW(p, lr=0.1, betas=(0.5, 0.99)), 6.0, "adam"),
        (lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.5), 3.0, "rmsprop"),
    ],
)
def test_where_an_optimizer_diverges_on_a_quadratic(make: Any, bound: float, scale: Any) -> None:
    """Steps along frozen preconditioners grow just above the bound and shrink just below it."""
    model = Weights(torch.ones(3, dtype=torch.float64))
    optimizer = make(model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        (model.w * torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)).sum().backward()
        optimizer.step()
    found = geometry(optimizer, ParameterSpace(model))
    assert found is not None and found.bound == pytest.approx(bound) and found.rate == 0.1
    assert (found.root is None) == (scale is None)
    group, state = optimizer.param_groups[0], optimizer.state[model.w]
    if scale == "adam":
        first, second = group["betas"]
        divisor = (state["exp_avg_sq"] / (1 - second**3)).sqrt() + group["eps"]
        torch.testing.assert_close(found.root, (divisor * (1 - first**3)).rsqrt())
    if scale == "rmsprop":
        torch.testing.assert_close(found.root, (state["square_avg"].sqrt() + 1e-8).rsqrt())
    m = group.get("momentum", group.get("betas", (0,))[0])
    weight = (1 - m) if scale == "adam" else 1.0
    for factor, grows in ((1.02, True), (0.98, False)):
        curvature, x, v = factor * bound, 1.0, 0.0
        for _ in range(600):
            v = m * v + weight * curvature * x
            x -= (curvature * x + m * v) if group.get("nesterov") else v
        assert (abs(x) > 1) == grows


def test_an_optimizer_without_a_formula_has_none() -> None:
    model = Weights(torch.ones(3))
    space = ParameterSpace(model)
    assert geometry(torch.optim.Adagrad(model.parameters(), lr=0.1), space) is None


@pytest.mark.parametrize("box", ["keskar", "filters"])
def test_sharpness_of_a_quadratic_is_exact_and_grows_with_the_box(box: Any) -> None:
    """Of h w^2 / 2 it is at the corner away from 0: h ((|w| + r)^2 - w^2) / 2."""
    curvature = torch.tensor([4.0, 1.0], dtype=torch.float64)
    start = torch.tensor([[0.5, -2.0]], dtype=torch.float64)
    found = []
    for epsilon in (1e-3, 1e-2, 1e-1):
        model = Weights(start)
        replay = Known(model, lambda w: (curvature * w.square()).sum() / 2)
        space = ParameterSpace(model)
        width = epsilon * ((start.abs() + 1) if box == "keskar" else start.square().mean().sqrt())
        rise = (curvature * ((start.abs() + width).square() - start.square())).sum() / 2
        low, high = sharpness(space, replay, box_of(box, space, epsilon), 5, seed=0)
        assert high - low == pytest.approx(float(rise), rel=1e-9)
        probe = Sharpness(model, CLOCK, 0, box=box, epsilon=epsilon)
        value = float(probe.measure(moment_of(replay))["sharpness"])
        assert value == pytest.approx(100 * float(rise) / (1 + low), rel=1e-9)
        assert torch.equal(model.w, start)
        found.append(value)
    assert found == sorted(found)


def test_filter_wise_sharpness_knows_only_the_function() -> None:
    """A layer times c and the next divided by it compute the same (Dinh et al. 2017)."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(64, 6).double(), torch.randn(64, 1).double()
    values = {}
    for factor in (1.0, 5.0):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 1, bias=False))
        net = net.double()
        with torch.no_grad():
            net[0].weight *= factor
            net[2].weight /= factor

        space, replay = ParameterSpace(net), OfNet(net, inputs, targets)
        for box in ("filters", "keskar"):
            low, high = sharpness(space, replay, box_of(box, space, 1e-2), 5, seed=0)
            values[box, factor] = high - low
    assert values["filters", 5.0] == pytest.approx(values["filters", 1.0], rel=1e-9)
    assert values["keskar", 5.0] > 1.2 * values["keskar", 1.0]


@pytest.mark.parametrize(
    ("alpha", "low", "high"),
    [(2.0, 1.98, 2.02), (1.5, 1.48, 1.52), (1.0, 0.98, 1.02), ("laplace", 1.7, 1.95)],
)
def test_tail_index_of_known_distributions(alpha: Any, low: float, high: float) -> None:
    """Stable variables as Chambers et al. 1976 draw them; Laplace's shows the estimator's bias."""
    generator = torch.Generator().manual_seed(3)
    size = 4_000_000
    u = (torch.rand(size, generator=generator, dtype=torch.float64) - 0.5) * math.pi
    w = -torch.rand(size, generator=generator, dtype=torch.float64).log()
    if alpha == "laplace":
        drawn = u.sign() * w
    elif alpha == 1.0:
        drawn = u.tan()
    else:
        drawn = (alpha * u).sin() / u.cos() ** (1 / alpha)
        drawn *= (((1 - alpha) * u).cos() / w) ** ((1 - alpha) / alpha)
    assert low < index_of(drawn) < high
    assert low < index_of(torch.cat((drawn, torch.zeros(1000)))) < high
    assert math.isnan(index_of(torch.ones(10)))
