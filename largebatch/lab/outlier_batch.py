"""Large batches train to places where the outlying eigenvalues of the Hessian are larger.

Sagun et al. 2017, section 4. Every batch takes as many steps of the same rate.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from largebatch.lab.descent import fit
from largebatch.lab.digits import digits
from largebatch.lab.experiment import (
    Check,
    Experiment,
    Findings,
    Scale,
    agreed,
    experiments,
    spread,
)
from largebatch.lab.networks import perceptron
from largebatch.lab.pictures import lines, over_seeds
from largebatch.lab.whole_batch import WholeBatch
from largebatch.optim import SGD
from largebatch.probes.hessian import Hessian
from largebatch.probes.lanczos import lanczos
from largebatch.probes.parameter_space import ParameterSpace

RATE = 0.1
TOP = 10


@experiments.register("outlier-B")
class OutliersByBatch(Experiment):
    """Trains a perceptron at several batches, and takes the ten largest eigenvalues at the end."""

    lecture = "An overview of empirical studies in NNs (Sagun)"
    claim = "increasing the batch size leads to larger outlier eigenvalues"
    source = "Sagun et al. 2017, section 4"
    minutes = 1.0
    seeds = 5

    def measure(self, scale: Scale) -> Findings:
        """Compare the smallest batch with the whole set."""
        samples = digits("train", torch.float64)
        count, steps = len(samples[1]), scale.pick(400, 2000)
        batches = scale.pick((8, count), (8, 32, 128, 512, count))
        rows, tops = list[dict[str, float]](), list[list[float]]()
        for seed in scale.seeds:
            run = []
            for batch in batches:
                model = perceptron((64, 32, 10), seed, activation=nn.Tanh, dtype=torch.float64)
                space, replay = ParameterSpace(model), WholeBatch(model, samples)
                optimizer = SGD(space.params.values(), lr=RATE)
                fit(model, samples, optimizer, batch, steps, seed)
                values = lanczos(Hessian(space, replay), space.random(seed), 60, space).values
                run.append(float(values[-1]))
                rows.append({"seed": seed, "batch": batch, "loss": float(replay.loss()),
                             "largest": run[-1], "10th": float(values[-TOP]),
                             "largest x rate": run[-1] * RATE})  # fmt: skip
            tops.append(run)
        ratios = [run[-1] / run[0] for run in tops]
        rising = [all(a <= b for a, b in pairwise(run)) for run in tops]
        checks = [
            Check(f"largest eigenvalue, batch {count} over batch {batches[0]}", "above 1",
                  spread(ratios), agreed(ratio > 1 for ratio in ratios)),
            Check("it rises with every batch", "yes", f"{sum(rising)} of {len(rising)} seeds",
                  agreed(rising)),
        ]  # fmt: skip
        drawing = lines("batch", "largest eigenvalue",
                        [over_seeds("largest eigenvalue", batches, tops, "lines+markers")],
                        log="xy", levels={"2 / rate": 2 / RATE})  # fmt: skip
        note = f"of the whole set's loss after {steps} steps of rate {RATE}"
        return Findings(
            checks, rows, [("Outliers by batch", note, drawing)],
            ["Tanh perceptron 64-32-10. Equal steps, not equal epochs: a small batch sees each"
             " digit less often, and its loss at the end is in the table. At 2 / rate the whole"
             " batch is at the edge of stability, which bounds its largest eigenvalue."],
        )  # fmt: skip
