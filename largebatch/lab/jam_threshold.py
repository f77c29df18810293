"""The least number of parameters that fits P random labels: N*, about linear in P."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from largebatch.lab.experiment import Check, Experiment, Findings, Scale, experiments, spread
from largebatch.lab.jamming import Nets, random_data, scan, threshold
from largebatch.lab.pictures import Series, lines, scatter
from largebatch.report.log_fit import determines_line, straight_line


@experiments.register("jam-N*")
class Jamming(Experiment):
    """Scans N for several P: two kinds of shapes, so that N goes in steps of some ten."""

    lecture = "An overview of empirical studies in NNs (Sagun)"
    claim = "N*: critical number of parameters that fits D_train"
    source = "Spigler, Geiger et al. 2018, arXiv:1810.09665; Geiger et al. 2018, arXiv:1809.09349"
    minutes = 2.0

    def measure(self, scale: Scale) -> Findings:
        """Look for N* of random labels; then ask the logistic loss the same at one P."""
        counts = scale.pick((64, 128, 256), (64, 128, 256, 512))
        steps, nets, between, most = scale.pick((300, 3, (0,), 1.5), (3000, 4, (0, 1), 1.1))
        rows, curves, jumps = [], [], []
        found: list[tuple[float, float]] = []
        zero = True
        for seed in scale.seeds:
            for count in counts:
                shapes, data = _shapes(count, between, most), random_data(count, seed)
                scanned = scan(shapes, data, nets, steps, seed, downwards=True)
                zero &= all(bool(((s.losses == 0) == (s.broken == 0)).all()) for s in scanned)
                critical, jump = threshold(scanned), None
                below = [s for s in scanned if critical is not None and s.size < critical]
                if critical is not None:
                    found.append((count, critical))
                if below:
                    jump = round(float(below[-1].broken.max()) / below[-1].size, 3)
                    jumps.append(jump)
                rows.append({"P": count, "seed": seed, "N*": critical, "broken / N below": jump})
                if seed == scale.seeds[0]:
                    sizes = [s.size / count for s in scanned]
                    shares = [float(s.broken.float().mean()) / s.size for s in scanned]
                    curves.append(Series(f"P = {count}", sizes, shares, mode="lines+markers"))
        across, up = [count for count, _ in found], [critical for _, critical in found]
        shapes, data = _shapes(counts[0], between, most), random_data(counts[0], 0)
        soft = [float(s.losses.min()) for s in scan(shapes, data, nets, steps, 0, loss=_logistic)]
        always = "loss 0 where no constraint is broken, and only there"
        checks = [
            Check("N* against P", "linear", *_law(across, up)),
            Check(
                "constraints broken just below N*, of N",
                "a jump from 0, of order 1",
                spread(jumps),
                all(jump > 0.05 for jump in jumps) if len(jumps) == len(rows) else None,
            ),
            Check(always, "always", str(zero), zero, True),
            Check(
                f"least logistic loss over all N, P = {counts[0]}",
                "above 0: it jams nowhere",
                f"{min(soft):.2g}",
                min(soft) > 0,
                True,
            ),
        ]
        notes = [
            f"{nets} networks a shape, {steps} steps at most",
            "inputs of 10 dimensions, so the least P are hardly more than a plane divides",
        ]
        note = "mean over networks, of N, first seed"
        charts = [
            ("N* against P", "each seed's", scatter("P", "N*", [Series("N*", across, up)], "xy")),
            ("Broken constraints", note, lines("N / P", "broken / N", curves)),
        ]
        return Findings(checks, rows, charts, notes)


def _law(across: Sequence[float], up: Sequence[float]) -> tuple[str, bool | None]:
    """Return N* against P in words, and whether it is linear; None: too few were found."""
    if not determines_line(across):
        return f"{len(across)} found, too few for a line", None
    logs = [[math.log(value) for value in each] for each in (across, up)]
    exponent, _, error, _ = straight_line(*logs)
    per, offset, _, r2 = straight_line(across, up)
    line = f"N* = {offset:.0f} + {per:.2f} P, R² {r2:.3f}; N* ~ P^({exponent:.2f} ± {error:.2f})"
    return line, r2 > 0.95 and abs(exponent - 1) < 0.25


def _shapes(count: int, between: Sequence[int], most: float) -> list[tuple[int, int]]:
    """Return shapes of 0.3 to ``most`` times P parameters, in order of N.

    The second layer is wider by ``between``.
    """
    every = [(h, h + more) for h in range(1, 40) for more in between]
    sizes = {shape: Nets(shape, 1, 0).size for shape in every}
    return [shape for shape in every if 0.3 * count < sizes[shape] < most * count]


def _logistic(margins: Tensor) -> Tensor:
    return torch.nn.functional.softplus(-margins)
