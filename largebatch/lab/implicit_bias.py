"""Gradient descent on separable data turns towards the largest margin, as slowly as log t.

Soudry, Hoffer, Nacson, Srebro 2018. On the first set all limits are known in closed form. The
support vectors (1, 2) and (1, -.5) give the maximum-margin vector (1, 0) with multipliers .2 and
.8. The losses of both must fall in proportion to their multipliers, which fixes the part of w
beside log t.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from largebatch.lab.experiment import (
    Check,
    Drawing,
    Experiment,
    Findings,
    Scale,
    agreed,
    experiments,
    spread,
)
from largebatch.lab.pictures import Series, lines

Floats: TypeAlias = NDArray[np.float64]
POINTS = np.array([[1, 2], [1, -0.5], [3, 1], [2.5, -0.3]])
RATE = 0.1
ACROSS = math.log(4) / 2.5  # e^-(2 w_y) : e^(.5 w_y) = .2 : .8
ALONG = math.log(RATE / 0.2) - 2 * ACROSS  # w_x - ln t: dw_x/dt = RATE * loss = 1 / t


def logistic_path(points: Floats, rate: float, steps: int) -> dict[int, Floats]:
    """Return w of gradient descent from 0 on the summed logistic loss, ten times a decade.

    Args:
        points: (n, d), each multiplied by its label.
    """
    times = {round(10 ** (k / 10)) for k in range(int(10 * math.log10(steps)) + 1)}
    w, kept = np.zeros(points.shape[1]), {}
    for step in range(1, steps + 1):
        w += rate * ((1 / (1 + np.exp(points @ w))) @ points)
        if step in times:
            kept[step] = w.copy()
    return kept


def separable(seed: int, count: int = 20) -> tuple[Floats, Floats]:
    """Return points of two classes that a line through 0 divides, and its w of margin 1."""
    from sklearn.svm import LinearSVC  # type: ignore[import-untyped]

    rng = np.random.default_rng(seed)
    points = rng.normal((1.5, 1.0), 0.6, (count, 2))
    points = points[points @ (1.5, 1.0) > 0.5]
    both, labels = np.concatenate((points, -points)), np.repeat((1, -1), len(points))
    machine = LinearSVC(C=1e6, loss="hinge", fit_intercept=False, tol=1e-10, max_iter=10**6)
    w = machine.fit(both, labels).coef_[0]
    return points, w / (points @ w).min()


class Moment(NamedTuple):
    """Where w is at step t, against the vector of the largest margin, w_hat."""

    t: int
    product: float  # rate t loss: tends to 1
    angle: float  # 1 - cosine
    gap: float  # of the margin, times ln t
    rest: float  # |rho| = |w - w_hat ln t|
    w: Floats


def moments(path: Mapping[int, Floats], points: Floats, limit: Floats) -> list[Moment]:
    """Return what a path comes to at its times."""
    margin = 1 / float(np.linalg.norm(limit))
    found = []
    for t, w in path.items():
        norm = float(np.linalg.norm(w))
        product = RATE * t * float(np.log1p(np.exp(-points @ w)).sum())
        gap = (margin - float((points @ w).min()) / norm) * math.log(t)
        rest = float(np.linalg.norm(w - limit * math.log(t)))
        found.append(Moment(t, product, 1 - float(w @ limit) / norm * margin, gap, rest, w))
    return found


def near(what: str, found: float, limit: float, tolerance: float) -> Check:
    """Return the check of a known limit."""
    return Check(what, f"{limit:.6f}", f"{found:.6f}", abs(found - limit) < tolerance, True)


@experiments.register("imp-bias")
class ImplicitBias(Experiment):
    """Follows w to 10^5 (quick) or 10^6 steps, on the known set and on one drawn a seed."""

    lecture = "Rethinking Common Practices in Deep Learning (Hoffer)"
    claim = "w(t) = w_hat log t + rho(t), rho bounded: slow convergence to the max-margin solution"
    source = "Soudry et al. 2018, theorem 1"
    minutes = 0.2

    def measure(self, scale: Scale) -> Findings:
        """Compare with the limits; a tolerance is ten times what the theory leaves at that t."""
        steps = scale.pick(10**5, 10**6)
        known = moments(logistic_path(POINTS, RATE, steps), POINTS, np.array([1.0, 0.0]))
        last, before = known[-1], known[-11]
        growth = float(np.linalg.norm(last.w) - np.linalg.norm(before.w))
        gaps = [moment.gap for moment in known if moment.t >= 1000]
        tolerance = 200 / steps
        checks = [
            near("w across the margin", float(last.w[1]), ACROSS, tolerance),
            near("w along it, less ln t", float(last.w[0]) - math.log(steps), ALONG, tolerance),
            near("rate x t x loss", last.product, 1, tolerance),
            near("d |w| / d ln t, last decade", growth / math.log(10), 1, 0.02),
            Check("gap of the margin x ln t", "bounded", f"{min(gaps):.3f} to {max(gaps):.3f}",
                  max(gaps) < 2 * min(gaps), True),
        ]  # fmt: skip
        curves, aside = {"known limits": known}, []
        for seed in scale.seeds:
            points, limit = separable(seed)
            drawn = moments(logistic_path(points, RATE, steps // 5), points, limit)
            curves[f"drawn, seed {seed}"] = drawn
            ahead = float(np.linalg.norm(limit)) * math.log(10)
            aside.append(abs(drawn[-1].rest - drawn[-11].rest) / ahead)
        checks.append(
            Check("drawn data: growth of |rho| over the last decade, of w_hat log t's",
                  "0: bounded", spread(aside), agreed(share < 0.1 for share in aside))
        )  # fmt: skip
        rows = [
            {"data": name, "steps": path[-1].t, "rate t loss": round(path[-1].product, 6),
             "1 - cosine": f"{path[-1].angle:.3e}", "gap x ln t": round(path[-1].gap, 4),
             "|rho|": round(path[-1].rest, 4)}
            for name, path in curves.items()
        ]  # fmt: skip

        def chart(title: str, note: str, key: str, log: str) -> tuple[str, str, Drawing]:
            series = [
                Series(name, [each.t for each in path], [getattr(each, key) for each in path])
                for name, path in curves.items()
            ]
            return title, note, lines("t", "", series, log)

        charts = [
            chart("Angle to the maximum margin", "1 - cosine", "angle", "xy"),
            chart("What log t leaves over", "|w - w_hat ln t|: bounded", "rest", "x"),
            chart("Loss", "rate x t x loss tends to 1", "product", "x"),
        ]
        return Findings(checks, rows, charts)
