"""Paths of optimizers over a saddle and a valley, and where momentum goes in a circle."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor

from largebatch.lab.experiment import Check, Experiment, Findings, Scale, experiments
from largebatch.optim import SGD

Make = Callable[[list[Tensor]], torch.optim.Optimizer]

STRONG, SMOOTH = 1.0, 25.0  # least and largest slope of the gradient of Lessard's function
POLYAK = {"lr": 1 / 9, "momentum": 4 / 9}  # 4 / (5 + 1)^2 and ((5 - 1) / (5 + 1))^2
NESTEROV = {"lr": 1 / SMOOTH, "momentum": 2 / 3, "nesterov": True}  # (5 - 1) / (5 + 1)
START = 3.3

SADDLE: dict[str, Make] = {
    "SGD": lambda p: SGD(p, lr=0.01),
    "momentum": lambda p: SGD(p, lr=0.01, momentum=0.9),
    "Nesterov": lambda p: SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    "AdaGrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
}
VALLEY: dict[str, Make] = {  # the best that theory knows for curvatures 1 and 100
    "SGD": lambda p: SGD(p, lr=2 / 101),
    "momentum": lambda p: SGD(p, lr=4 / 121, momentum=(9 / 11) ** 2),
}


def lessard(x: Tensor) -> Tensor:
    """Return a convex function whose gradient has slopes 1 and 25 (Lessard et al. 2016, 4.5)."""
    middle = torch.where(x < 2, x.square() / 2 + 24 * x - 12, 12.5 * x.square() - 24 * x + 36)
    return torch.where(x < 1, 12.5 * x.square(), middle).sum()


def saddle(x: Tensor) -> Tensor:
    """Return a function that falls along its second coordinate alone."""
    return (x[0].square() - x[1].square()) / 2


def valley(x: Tensor) -> Tensor:
    """Return a quadratic of curvatures 1 and 100."""
    return (x[0].square() + 100 * x[1].square()) / 2


def path(loss: Callable[[Tensor], Tensor], start: list[float], make: Make, steps: int) -> Tensor:
    """Return the points (steps + 1, coordinates) that an optimizer visits."""
    point = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    optimizer, visited = make([point]), [point.detach().clone()]
    for _ in range(steps):
        optimizer.zero_grad()
        loss(point).backward()
        optimizer.step()
        visited.append(point.detach().clone())
    return torch.stack(visited)


def cycle() -> np.ndarray:
    """Return the three points that heavy ball visits in turn: two below 1 and one above 2.

    x'' = x' - rate gradient(x') + momentum (x' - x), where the gradient is 25 x, of the last point
    25 x - 24: three linear equations.
    """
    rate, momentum = POLYAK["lr"], POLYAK["momentum"]
    own = 1 + momentum - SMOOTH * rate
    matrix = np.array([[-own, 1, momentum], [momentum, -own, 1], [1, momentum, -own]])
    # Rows: to the second point from the first, to the third, and back to the first.
    return np.linalg.solve(matrix, np.array([0.0, 0.0, 24 * rate]))


@experiments.register("opt-paths")
class OptimizerPaths(Experiment):
    """Follows optimizers in two dimensions and one."""

    lecture = "Optimization Techniques (KAIST AI602), Visualization of algorithms"
    claim = (
        "adaptive methods suit a saddle best; momentum accelerates in a valley, and can fail to"
        " converge even for simple convex functions, where Nesterov's does not"
    )
    source = "Lessard, Recht, Packard 2016, section 4.5; Ruder 2016"
    minutes = 0.1
    seeds = 1

    def measure(self, scale: Scale) -> Findings:
        found = Findings()
        steps = scale.pick(400, 2000)
        self._circle(found, steps)
        self._saddle(found, steps)
        self._valley(found)
        return found

    def _circle(self, found: Findings, steps: int) -> None:
        ball = path(lessard, [START], lambda p: SGD(p, **POLYAK), steps)[:, 0]
        nesterov = path(lessard, [START], lambda p: SGD(p, **NESTEROV), steps)[:, 0]
        ends, known = np.sort(ball[-3:].numpy()), np.sort(cycle())
        words = ", ".join(f"{x:.4f}" for x in ends)
        found.checks += [
            Check("heavy ball ends in a circle of three points", ", ".join(f"{x:.4f}" for x in known),
                  words, bool(np.abs(ends - known).max() < 1e-9), exact=True),
            Check("Nesterov's momentum on the same function", "converges to 0",
                  f"|x| = {abs(float(nesterov[-1])):.1e}", abs(float(nesterov[-1])) < 1e-9, exact=True),
        ]  # fmt: skip
        figure = go.Figure()
        for name, points in (("heavy ball", ball), ("Nesterov", nesterov)):
            figure.add_scatter(y=points[:60].tolist(), name=name, mode="lines+markers")
        figure.update_layout(xaxis_title="step", yaxis_title="x")
        note = f"from {START}, with the rates that are best for quadratics of these curvatures"
        found.charts.append(("Momentum on a convex function", note, figure))

    def _saddle(self, found: Findings, steps: int) -> None:
        figure, left = _contours(saddle, (-1.2, 1.2), (-1.2, 1.2)), dict[str, float]()
        for name, make in SADDLE.items():
            points = path(saddle, [1.0, 1e-3], make, steps)
            outside = torch.nonzero(points[:, 1].abs() > 1).flatten()
            left[name] = float(outside[0]) if len(outside) else float("inf")
            shown = points[: int(min(left[name], steps)) + 1]
            figure.add_scatter(x=shown[:, 0].tolist(), y=shown[:, 1].tolist(), name=name)
            found.rows.append({"task": "saddle", "optimizer": name, "steps": left[name]})
        first, plain = sorted(left, key=left.__getitem__)[:2], ("SGD", "momentum", "Nesterov")
        found.checks += [
            Check("first to leave the saddle", "RMSprop and Adadelta", " and ".join(first),
                  set(first) == {"RMSprop", "Adadelta"}),
            Check("adaptive methods leave before any other", "all",
                  ", ".join(f"{name} {count:.0f}" for name, count in left.items()),
                  max(v for k, v in left.items() if k not in plain) < min(left[k] for k in plain)),
        ]  # fmt: skip
        note = (
            "from (1, 0.001); rate 0.01, Adadelta's 1; as far as the first step out of the square"
        )
        found.charts.append(("Leaving a saddle", note, figure))

    def _valley(self, found: Findings) -> None:
        figure, needed = _contours(valley, (-1.2, 1.2), (-1.2, 1.2)), dict[str, int]()
        for name, make in VALLEY.items():
            points = path(valley, [1.0, 1.0], make, 1000)
            far = torch.nonzero(points.norm(dim=1) > 1e-6).flatten()
            needed[name] = int(far[-1]) + 1
            figure.add_scatter(x=points[:, 0].tolist(), y=points[:, 1].tolist(), name=name)
            found.rows.append({"task": "valley", "optimizer": name, "steps": needed[name]})
        found.checks.append(
            Check("steps to 1e-6 in a valley, momentum against none", "fewer",
                  f"{needed['momentum']} against {needed['SGD']}",
                  needed["momentum"] < needed["SGD"])
        )  # fmt: skip
        found.charts.append(("Along a valley", "curvatures 1 and 100", figure))


def _contours(
    loss: Callable[[Tensor], Tensor], x: tuple[float, float], y: tuple[float, float]
) -> go.Figure:
    across, up = torch.linspace(*x, 41), torch.linspace(*y, 41)
    values = [[float(loss(torch.stack((a, b)))) for a in across] for b in up]
    figure = go.Figure(
        go.Contour(x=across.tolist(), y=up.tolist(), z=values, showscale=False, ncontours=20)
    )
    return figure.update_layout(xaxis_range=x, yaxis_range=y)
