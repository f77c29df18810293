"""A smoothed loss has fewer minima; as the width shrinks its minimum leads to the loss's own.

Pardalos, Shalloway, Xue 1994, equation 2: f^-1 of the mean of f over a Gaussian, with f = x
("diffusion equation") or f = exp(-x / kT) ("effective energy"; Entropy-SGD's local entropy).
"""

from __future__ import annotations

import numpy as np
import torch

from largebatch.lab.experiment import (
    Check,
    Experiment,
    Findings,
    Scale,
    agreed,
    experiments,
    spread,
)
from largebatch.lab.pictures import Series, lines, over_seeds
from largebatch.lab.rugged import AT, Rugged, minima, rolled, tracked
from largebatch.weight_space import Weights, gaussian_noise, smoothed_loss

WIDTHS = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6)


@experiments.register("smooth-loss")
class SmoothedLoss(Experiment):
    """Checks the package's smoothing where it is known, and counts minima of rugged functions."""

    lecture = "An overview of empirical studies in NNs (Sagun)"
    claim = (
        "a highly smoothed function has fewer local minima; its minimizer leads to the global one"
    )
    source = "Pardalos, Shalloway, Xue 1994, equation 2"
    minutes = 0.1
    seeds = 10

    def measure(self, scale: Scale) -> Findings:
        """Compare on quadratics, then follow minima."""
        found = Findings([], [])
        self._quadratic(found, scale.pick(200, 4000))
        self._wells(found, scale.pick(200, 2000))
        counts, hits, chances = list[list[int]](), list[bool](), list[float]()
        per_seed = 10  # functions for each seed
        for seed in scale.seeds:
            rows = []
            for number in range(per_seed):
                loss = Rugged(1000 * seed + number)
                rows.append([len(minima(loss(AT, width))) for width in WIDTHS])
                best = int(loss(AT).argmin())
                hits.append(abs(tracked(loss, np.linspace(1.6, 0, 60).tolist()) - best) <= 1)
                starts = np.linspace(0, len(AT) - 1, 40).astype(int)
                ends = [abs(rolled(loss(AT), int(s)) - best) <= 1 for s in starts]
                chances.append(float(np.mean(ends)))
            counts.append([sum(column) / per_seed for column in zip(*rows, strict=True)])
            by_width = {f"width {w:g}": c for w, c in zip(WIDTHS, counts[-1], strict=True)}
            found.rows.append({"seed": seed, **by_width})
        found.checks += [
            Check("minima at width 0.8 over those of the function itself", "fewer",
                  spread([run[4] / run[0] for run in counts]),
                  agreed(run[4] < run[0] for run in counts)),
            Check("the minimum that is followed ends in the global one", "more often than descent",
                  f"{np.mean(hits):.0%} against {np.mean(chances):.0%} of starts",
                  bool(np.mean(hits) > np.mean(chances))),
        ]  # fmt: skip
        loss = Rugged(0)
        found.charts += [
            ("A rugged function, smoothed", "f = x, in closed form",
             lines("x", "loss", [Series(f"width {w:g}", AT.tolist(), loss(AT, w).tolist())
                                 for w in WIDTHS])),
            ("Minima by width", f"mean of {per_seed} functions a seed",
             lines("width", "minima", [over_seeds("minima", WIDTHS, counts, "lines+markers")])),
        ]  # fmt: skip
        return found

    def _quadratic(self, found: Findings, draws: int) -> None:
        curvatures = torch.logspace(-1, 1, 20, dtype=torch.float64)

        def loss(weights: Weights) -> float:
            return float((curvatures * weights["w"].square()).sum() / 2)

        def smooth(weights: Weights, width: float) -> tuple[float, float]:
            seen = smoothed_loss(loss, weights, width, draws, lambda k: gaussian_noise(weights, k))
            return seen.value, seen.error

        here = {"w": torch.ones(20, dtype=torch.float64)}
        there = {"w": torch.linspace(-2, 3, 20, dtype=torch.float64)}
        (a, error), (b, _) = smooth(here, 0.5), smooth(there, 0.5)
        shift = (a - loss(here)) - (b - loss(there))
        known = 0.25 * float(curvatures.sum()) / 2
        off = (a - loss(here) - known) / error
        limit = abs(smooth(here, 1e-4)[0] - loss(here))
        found.checks += [
            Check("smoothed quadratic less the quadratic, at two places", "the same (to 1e-9)",
                  f"{abs(shift):.1e} apart", abs(shift) < 1e-9, exact=True),
            Check("and it is width^2 tr(H) / 2, in standard errors", "within 3", f"{abs(off):.2f}",
                  abs(off) < 3, exact=True),
            Check("width 1e-4 gives the loss back", "to 1e-6", f"{limit:.1e}", limit < 1e-6,
                  exact=True),
        ]  # fmt: skip

    def _wells(self, found: Findings, draws: int) -> None:
        """Smooth two wells: a narrow one that is deeper, and a wide one."""

        def wells(weights: Weights) -> float:
            x = float(weights["w"])
            return float(-1.2 * np.exp(-((x + 2) ** 2) / 0.02) - np.exp(-((x - 2) ** 2) / 2))

        at = np.linspace(-4, 4, 41)
        places = [{"w": torch.tensor(x, dtype=torch.float64)} for x in at]

        def noise(number: int) -> Weights:
            return gaussian_noise(places[0], number)

        curves = []
        for name, temperature in (("f = x", None), ("f = exp(-x / 0.2)", 0.2)):
            values = [
                smoothed_loss(wells, there, 0.7, draws // 8, noise, temperature).value
                for there in places
            ]
            curves.append(Series(name, at.tolist(), values))
            lowest = float(at[int(np.argmin(values))])
            found.checks.append(
                Check(f"minimum of two wells under {name}", "in the wide one, at 2",
                      f"{lowest:.1f}", abs(lowest - 2) < 0.5)
            )  # fmt: skip
        plain = Series("itself", at.tolist(), [wells(there) for there in places])
        found.charts.append(
            ("A narrow and a wide well", "width 0.7", lines("x", "loss", [plain, *curves]))
        )
