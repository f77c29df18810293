"""Measure mean and variance of activations through residual blocks before training.

Brock, De, Smith 2021: average channel mean squared and channel variance after each block, on noise,
for blocks with batch norm, the same without, and those of scaled weight standardisation.
"""

from __future__ import annotations

import math

from largebatch.lab.experiment import Check, Experiment, Findings, Scale, experiments, spread
from largebatch.lab.pictures import lines, over_seeds
from largebatch.lab.residual_towers import TOWERS, Signal, propagate
from largebatch.models.nf_resnet import ALPHA
from largebatch.report.log_fit import straight_line


@experiments.register("spp")
class SignalPropagation(Experiment):
    """Noise through 16 (quick: 10) blocks of 128 (64) channels."""

    lecture = "Optimization Techniques (KAIST AI602)"
    claim = "Mean and variance grow exponentially in unnormalized network; BN eliminates mean-shift"
    source = "Brock, De, Smith 2021a, section 3"
    minutes = 0.3

    def measure(self, scale: Scale) -> Findings:
        """Fit both growths: a straight line against the block of the logarithm, or of itself."""
        channels, blocks = scale.pick((64, 10), (128, 16))
        found = {
            name: [propagate(name, seed, channels, blocks) for seed in scale.seeds]
            for name in TOWERS
        }
        places = list(range(blocks + 1))
        factors = [
            math.exp(straight_line(places, [math.log(a + b) for a, b in _both(s)])[0])
            for s in found["none"]
        ]
        bends = [straight_line(places, [a + b for a, b in _both(s)]) for s in found["batch norm"]]
        shares = {
            name: [s.mean_square[-1] / s.variance[-1] for s in signals]
            for name, signals in found.items()
        }
        expected = 1 + ALPHA**2 * blocks
        ends = [s.variance[-1] for s in found["SWS"]]
        checks = [
            Check(
                "no norm: factor of the mean square per block",
                "exponential; 2 where a branch adds what it gets",
                spread(factors),
                all(1.7 < f < 2.3 for f in factors),
                True,
            ),
            Check(
                "batch norm: a straight line, R² and what a block adds",
                "linear; 1 under He's initialisation",
                f"{min(b[3] for b in bends):.4f}, {spread([b[0] for b in bends])}",
                all(b[3] > 0.99 and 0.7 < b[0] < 1.3 for b in bends),
                True,
            ),
            Check(
                "SWS: variance at the end",
                f"1 + {ALPHA}² x {blocks} = {expected:.3g}",
                spread(ends),
                all(abs(end / expected - 1) < 0.15 for end in ends),
                True,
            ),
            Check(
                "mean² over variance at the end, batch norm against none",
                "BN eliminates the mean-shift",
                f"{spread(shares['batch norm'])} against {spread(shares['none'])}",
                all(a < b / 2 for a, b in zip(shares["batch norm"], shares["none"], strict=True)),
            ),
            Check(
                "mean² over variance at the end, SWS",
                "SWS eliminates the mean-shift",
                spread(shares["SWS"]),
                max(shares["SWS"]) < 0.05,
                True,
            ),
        ]
        rows = [
            {
                "norm": name,
                "blocks": blocks,
                "variance at the end": spread([s.variance[-1] for s in signals]),
                "mean² at the end": spread([s.mean_square[-1] for s in signals]),
                "mean² / variance": spread(shares[name]),
            }
            for name, signals in found.items()
        ]
        charts = [
            (
                title,
                note,
                lines(
                    "block",
                    title.lower(),
                    [
                        over_seeds(name, places, [getattr(s, what) for s in signals])
                        for name, signals in found.items()
                    ],
                    log="y",
                ),
            )
            for title, note, what in (
                ("Channel variance", "averaged over channels; band: the seeds", "variance"),
                ("Channel mean squared", "averaged over channels", "mean_square"),
            )
        ]
        notes = [
            "zero padding takes a few per cent of every convolution's output at the borders: growth"
            " stays somewhat below 2 a block, and below 1"
        ]
        return Findings(checks, rows, charts, notes)


def _both(signal: Signal) -> list[tuple[float, float]]:
    return list(zip(signal.mean_square, signal.variance, strict=True))
