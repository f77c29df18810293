"""The test error has a cusp where training jams, and falls slowly beyond.

Spigler, Geiger et al. 2018; Belkin et al. 2018. Digits, even or odd, by ten principal components,
as the papers take MNIST's; and the same with a tenth of the labels wrong, where the cusp is large.
"""

from __future__ import annotations

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
from largebatch.lab.jamming import Data, parity_data, scan, threshold
from largebatch.lab.pictures import lines, over_seeds

WRONG = (0.0, 0.1)


@experiments.register("jam-gen")
class JamGeneralization(Experiment):
    """Scans N at a fixed P, over N* and far beyond."""

    lecture = "An overview of empirical studies in NNs (Sagun)"
    claim = "Jamming is linked to Generalization"
    source = "Spigler, Geiger et al. 2018, arXiv:1810.09665; Belkin et al. 2018"
    minutes = 2.0

    def measure(self, scale: Scale) -> Findings:
        """Compare the largest test error around N* with those of fewer and of more parameters."""
        count, steps, nets = scale.pick((200, 500, 2), (600, 2500, 6))
        widths = scale.pick((2, 4, 5, 6, 8, 32), (2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 48, 96))
        rows, checks, charts = [], [], []
        for wrong in WRONG:
            runs, said, places, heights = [], [], [], []
            for seed in scale.seeds:
                data, held_out = parity_data(count, seed)
                data = mislabelled(data, wrong, seed)
                scanned = scan([(h, h) for h in widths], data, nets, steps, seed, held_out)
                sizes = [each.size for each in scanned]
                errors = [
                    float((held_out.y * each.outputs <= 0).float().mean()) for each in scanned
                ]
                runs.append(errors)
                critical = threshold(scanned)
                if critical is None:
                    continue
                near = [e for n, e in zip(sizes, errors, strict=True) if 0.5 <= n / critical <= 2]
                peak = max(near)
                places.append(sizes[errors.index(peak)] / critical)
                heights.append(peak / min(errors))
                said.append(peak > 1.05 * min(errors[: errors.index(peak) + 1]))
                rows.append(
                    {
                        "wrong labels": wrong,
                        "seed": seed,
                        "N*": critical,
                        "N of the cusp": sizes[errors.index(peak)],
                        "error there": round(peak, 4),
                        f"at N = {sizes[0]}": round(errors[0], 4),
                        f"at N = {sizes[-1]}": round(errors[-1], 4),
                    }
                )
            name = f"{wrong:.0%} wrong labels"
            checks += [
                Check(
                    f"{name}: test error rises to a cusp at N* (within a factor of 2)",
                    "a cusp at N*",
                    f"at {spread(places, 2)} N*, {spread(heights)} x the least" if places else "-",
                    agreed(said),
                ),
                Check(
                    f"{name}: error of the widest, of that at N*'s cusp",
                    "below 1: slow decrease beyond N*",
                    spread(
                        [
                            row[f"at N = {sizes[-1]}"] / row["error there"]
                            for row in rows[-len(places) :]
                        ]
                    ),
                    agreed(
                        row[f"at N = {sizes[-1]}"] < row["error there"]
                        for row in rows[-len(places) :]
                    ),
                ),
            ]
            curve = over_seeds("test error", sizes, runs, "lines+markers")
            marks = {f"N* {row['seed']}": row["N*"] for row in rows[-len(places) :]}
            charts.append(
                (
                    f"Test error, {name}",
                    "mean and range over seeds; dotted: each seed's N*",
                    lines("N", "", [curve], "x", marks, percent=True),
                )
            )
        return Findings(checks, rows, charts, [f"P = {count}; {nets} networks of each N and seed"])


def mislabelled(data: Data, share: float, seed: int) -> Data:
    """Return the data with a share of the labels turned."""
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.rand(len(data.y), generator=generator) < share
    return Data(data.x, torch.where(wrong, -data.y, data.y))
