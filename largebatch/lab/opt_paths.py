"""Paths of optimizers over a saddle and a valley, and where momentum goes in a circle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from largebatch.lab.experiment import Check, Drawing, Experiment, Findings, Scale, experiments
from largebatch.lab.lessard import BALL, NESTEROV, cycle, lessard
from largebatch.lab.pictures import Series, heat, lines
from largebatch.optim import SGD

Make = Callable[[list[Tensor]], torch.optim.Optimizer]

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


@experiments.register("opt-paths")
class OptimizerPaths(Experiment):
    """Follows optimizers in two dimensions and one."""

    lecture = "Optimization Techniques (KAIST AI602)"
    claim = (
        "adaptive methods suit a saddle best; momentum accelerates in a valley, and can fail to"
        " converge even for simple convex functions, where Nesterov's does not"
    )
    source = "Lessard, Recht, Packard 2016, section 4.5; Ruder 2016"
    minutes = 0.1
    seeds = 1

    def measure(self, scale: Scale) -> Findings:
        """Take the three pictures."""
        found = Findings([], [])
        steps = scale.pick(400, 2000)
        self._circle(found, steps)
        self._saddle(found, steps)
        self._valley(found)
        return found

    def _circle(self, found: Findings, steps: int) -> None:
        ball = path(lessard, [START], lambda p: SGD(p, *BALL), steps)[:, 0]
        nesterov = path(lessard, [START], lambda p: SGD(p, *NESTEROV, nesterov=True), steps)[:, 0]
        ends, known = np.sort(ball[-3:].numpy()), np.sort(cycle())
        claimed, words = (", ".join(f"{x:.4f}" for x in points) for points in (known, ends))
        rest = abs(float(nesterov[-1]))
        found.checks += [
            Check("heavy ball ends in a circle of three points", claimed, words,
                  bool(np.abs(ends - known).max() < 1e-9), exact=True),
            Check("Nesterov's momentum on the same function", "converges to 0", f"|x| = {rest:.1e}",
                  rest < 1e-9, exact=True),
        ]  # fmt: skip
        drawing = lines("step", "x", [
            Series(name, range(60), points[:60].tolist(), mode="lines+markers")
            for name, points in (("heavy ball", ball), ("Nesterov", nesterov))
        ])  # fmt: skip
        note = f"from {START}, with the rates that are best for quadratics of these curvatures"
        found.charts.append(("Momentum on a convex function", note, drawing))

    def _saddle(self, found: Findings, steps: int) -> None:
        paths, left = dict[str, Tensor](), dict[str, float]()
        for name, make in SADDLE.items():
            points = path(saddle, [1.0, 1e-3], make, steps)
            outside = torch.nonzero(points[:, 1].abs() > 1).flatten()
            left[name] = float(outside[0]) if len(outside) else float("inf")
            paths[name] = points[: int(min(left[name], steps)) + 1]
            steps_out = int(outside[0]) if len(outside) else f"over {steps}"
            found.rows.append({"task": "leave the saddle", "optimizer": name, "steps": steps_out})
        first = sorted(left, key=left.__getitem__)[:2]
        found.checks.append(
            Check("first to leave the saddle", "RMSprop and Adadelta", " and ".join(first),
                  set(first) == {"RMSprop", "Adadelta"})
        )  # fmt: skip
        note = (
            "from (1, 0.001); rate 0.01, Adadelta's 1; as far as the first step out of the square"
        )
        found.charts.append(("Leaving a saddle", note, over(saddle, paths)))

    def _valley(self, found: Findings) -> None:
        paths, needed = dict[str, Tensor](), dict[str, int]()
        for name, make in VALLEY.items():
            points = path(valley, [1.0, 1.0], make, 1000)
            far = torch.nonzero(points.norm(dim=1) > 1e-6).flatten()
            needed[name] = int(far[-1]) + 1
            paths[name] = points[: needed[name]]
            found.rows.append({"task": "valley, to 1e-6", "optimizer": name, "steps": needed[name]})
        found.checks.append(
            Check("steps to 1e-6 in a valley, momentum against none", "fewer",
                  f"{needed['momentum']} against {needed['SGD']}",
                  needed["momentum"] < needed["SGD"])
        )  # fmt: skip
        found.charts.append(("Along a valley", "curvatures 1 and 100", over(valley, paths)))


def over(loss: Callable[[Tensor], Tensor], paths: dict[str, Tensor]) -> Drawing:
    """Draw paths over a function of two coordinates."""
    at = torch.linspace(-1.2, 1.2, 49, dtype=torch.float64)
    values = [[float(loss(torch.stack((x, y)))) for x in at] for y in at]
    below = heat("x", "y", at.tolist(), at.tolist(), values, unit="loss")
    above = lines("x", "y", [
        Series(name, points[:, 0].tolist(), points[:, 1].tolist(), mode="lines+markers")
        for name, points in paths.items()
    ])  # fmt: skip

    def draw() -> Any:
        return below().add_traces(above().data).update_layout(legend={"orientation": "h"})

    return draw
