"""Gradient descent on separable data turns towards the largest margin, as slowly as log t.

Soudry, Hoffer, Nacson, Srebro 2018. On the first set all limits are known in closed form: the
support vectors (1, 2) and (1, -.5) give the maximum-margin vector (1, 0) with multipliers .2 and
.8, and the loss of both has to fall as their multipliers do, which fixes what log t leaves over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from largebatch.lab.experiment import (
    Check,
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


def descend(points: Floats, rate: float, steps: int) -> dict[int, Floats]:
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
    """Return points of two Gaussian classes that a line through 0 divides, and its w of margin 1."""
    from sklearn.svm import LinearSVC

    rng = np.random.default_rng(seed)
    points = rng.normal((1.5, 1.0), 0.6, (count, 2))
    points = points[points @ (1.5, 1.0) > 0.5]
    both, labels = np.concatenate((points, -points)), np.repeat((1, -1), len(points))
    machine = LinearSVC(C=1e6, loss="hinge", fit_intercept=False, tol=1e-10, max_iter=10**6)
    w = machine.fit(both, labels).coef_[0]
    return points, w / (points @ w).min()


def facts(path: Mapping[int, Floats], points: Floats, limit: Floats, rate: float) -> list[Floats]:
    """Return a row for each time: t, eta t L, 1 - cosine, gap of the margin times ln t, |rho|."""
    margin = 1 / np.linalg.norm(limit)
    rows = []
    for t, w in path.items():
        norm = np.linalg.norm(w)
        loss = np.log1p(np.exp(-points @ w)).sum()
        gap = margin - (points @ w).min() / norm
        rest = np.linalg.norm(w - limit * math.log(t))
        cosine = w @ limit / norm * margin
        rows.append(np.array([t, rate * t * loss, 1 - cosine, gap * math.log(t), rest]))
    return rows


@experiments.register("imp-bias")
class ImplicitBias(Experiment):
    """Follows w to 10^5 (quick) or 10^6 steps, on the known set and on one drawn a seed."""

    lecture = "Rethinking Common Practices in Deep Learning (Hoffer)"
    claim = "w(t) = w_hat log t + rho(t), rho bounded: slow convergence to the max-margin solution"
    source = "Soudry et al. 2018, theorem 1"
    minutes = 0.5

    def measure(self, scale: Scale) -> Findings:
        """Compare with the limits; a tolerance is ten times what the theory leaves at that t."""
        steps = scale.pick(10**5, 10**6)
        path = descend(POINTS, RATE, steps)
        known = facts(path, POINTS, np.array([1.0, 0.0]), RATE)
        last = path[steps]
        tolerance = 10 * 20 / steps
        slope = math.log(10) / (np.linalg.norm(last) - np.linalg.norm(path[steps // 10]))
        gaps = [float(row[3]) for row in known if row[0] >= 1000]
        checks = [
            Check(
                "w across the margin",
                f"{ACROSS:.6f}",
                f"{last[1]:.6f}",
                bool(abs(last[1] - ACROSS) < tolerance),
                True,
            ),
            Check(
                "w along it, less ln t",
                f"{ALONG:.6f}",
                f"{last[0] - math.log(steps):.6f}",
                bool(abs(last[0] - math.log(steps) - ALONG) < tolerance),
                True,
            ),
            Check(
                "rate x t x loss",
                "1",
                f"{known[-1][1]:.6f}",
                bool(abs(known[-1][1] - 1) < tolerance),
                True,
            ),
            Check(
                "d |w| / d ln t in the last decade",
                "1",
                f"{1 / slope:.4f}",
                bool(abs(1 / slope - 1) < 0.02),
                True,
            ),
            Check(
                "gap of the margin x ln t",
                "bounded",
                f"{min(gaps):.3f} to {max(gaps):.3f}",
                max(gaps) < 2 * min(gaps),
                True,
            ),
        ]
        rows = [
            {
                "data": "known limits",
                "steps": steps,
                "rate t loss": round(float(known[-1][1]), 6),
                "1 - cosine": f"{known[-1][2]:.3e}",
                "gap x ln t": round(gaps[-1], 4),
                "|rho|": round(float(known[-1][4]), 4),
            }
        ]
        curves = [known]
        for seed in scale.seeds:
            points, limit = separable(seed)
            curves.append(facts(descend(points, RATE, steps // 5), points, limit, RATE))
            _, product, angle, gap, rest = curves[-1][-1]
            rows.append(
                {
                    "data": f"drawn, seed {seed}",
                    "steps": steps // 5,
                    "rate t loss": round(float(product), 6),
                    "1 - cosine": f"{angle:.3e}",
                    "gap x ln t": round(float(gap), 4),
                    "|rho|": round(float(rest), 4),
                }
            )
        grown = [float(c[-1][4] / c[-11][4]) for c in curves[1:]]
        checks.append(
            Check(
                "|rho| over the last decade, drawn data",
                "bounded: factor 1",
                spread(grown),
                agreed(abs(factor - 1) < 0.1 for factor in grown),
            )
        )
        names = ["known limits", *(f"seed {seed}" for seed in scale.seeds)]
        charts = [
            (
                title,
                note,
                lines(
                    "t",
                    y,
                    [
                        Series(name, [float(r[0]) for r in rows], [float(r[column]) for r in rows])
                        for name, rows in zip(names, curves, strict=True)
                    ],
                    log=log,
                ),
            )
            for title, note, y, column, log in (
                ("Angle to the maximum margin", "1 - cosine", "1 - cosine", 2, "xy"),
                ("Rest after log t", "|w - w_hat ln t|: bounded", "|rho|", 4, "x"),
                ("Loss", "rate x t x loss tends to 1", "rate t loss", 1, "x"),
            )
        ]
        return Findings(checks, rows, charts)
