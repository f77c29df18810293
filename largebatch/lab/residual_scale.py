"""Measure how much a residual branch adds to its shortcut before training.

De and Smith 2020: batch norm resets a branch to variance 1 while the shortcut's variance counts the
blocks so far, so block l adds 1/l of what it gets and a deep network starts near the identity.
Without norm a branch is as large as its shortcut, however deep it lies. Variances are those over
draws of the weights, of which activations have mean 0: mean squares of one draw.
"""

from __future__ import annotations

import math
from statistics import median

from largebatch.lab.experiment import Check, Experiment, Findings, Scale, experiments, spread
from largebatch.lab.pictures import Series, lines, over_seeds
from largebatch.lab.residual_towers import TOWERS, propagate
from largebatch.models.nf_resnet import ALPHA
from largebatch.report.log_fit import straight_line


@experiments.register("res-scale")
class ResidualScale(Experiment):
    """Noise through 24 (quick: 12) blocks of 64 channels."""

    lecture = "Optimization Techniques (KAIST AI602)"
    claim = "BN reduces the scale of residual branches at initialization: biased to the skip path"
    source = "De and Smith 2020, sections 2 and 3"
    minutes = 0.3

    def measure(self, scale: Scale) -> Findings:
        """Fit the mean square of branch over shortcut against the block, both logarithmic."""
        blocks = scale.pick(12, 24)
        found = {
            name: [propagate(name, seed, 64, blocks).branch for seed in scale.seeds]
            for name in TOWERS
        }
        places = list(range(1, blocks + 1))
        slopes = {
            name: [
                straight_line([math.log(p) for p in places], [math.log(r) for r in ratios])[0]
                for ratios in runs
            ]
            for name, runs in found.items()
        }
        middles = {name: [median(ratios) for ratios in runs] for name, runs in found.items()}
        at_end = [r[-1] * blocks for r in found["batch norm"]]
        expected = ALPHA**2 / (1 + ALPHA**2 * (blocks - 1))
        small = [r[-1] for r in found["SWS"]]
        checks = [
            Check(
                "batch norm: power of the block in branch / shortcut",
                "-1: as 1 / l",
                spread(slopes["batch norm"]),
                all(abs(s + 1) < 0.15 for s in slopes["batch norm"]),
                True,
            ),
            Check(
                "batch norm: branch / shortcut at the last block, times its number",
                "about 1",
                spread(at_end),
                all(0.7 < v < 1.3 for v in at_end),
                True,
            ),
            Check(
                "no norm: power of the block",
                "0: a branch is as large as its shortcut",
                spread(slopes["none"]),
                all(abs(s) < 0.15 for s in slopes["none"]),
                True,
            ),
            Check(
                "no norm: median of branch / shortcut",
                "about 1",
                spread(middles["none"]),
                all(0.6 < m < 1.4 for m in middles["none"]),
                True,
            ),
            Check(
                "NFNet's blocks: branch / shortcut at the last",
                f"a small scalar suppresses it: {expected:.3g}",
                spread(small),
                all(abs(v / expected - 1) < 0.15 for v in small),
                True,
            ),
        ]
        rows = [
            {
                "norm": name,
                "block 1": spread([r[0] for r in runs]),
                f"block {blocks}": spread([r[-1] for r in runs]),
                "power of the block": spread(slopes[name]),
            }
            for name, runs in found.items()
        ]
        series = [over_seeds(name, places, runs) for name, runs in found.items()]
        series.append(Series("1 / l", places, [1 / p for p in places], dashed=True))
        note = "mean square of what a branch adds over that of its shortcut; band: the seeds"
        chart = ("Branch over shortcut", note, lines("block", "ratio", series, log="xy"))
        return Findings(checks, rows, [chart])
