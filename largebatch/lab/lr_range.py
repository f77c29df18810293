"""The learning rate's range: too low is slow, too high diverges, and a larger batch bears more.

Smith 2017, "Cyclical learning rates for training neural networks", section 3.3: the rate rises
while one looks at the loss. Beside it, plain training at each rate.
"""

from __future__ import annotations

import math

from largebatch.lab.descent import descend, fit
from largebatch.lab.digits import Samples, digits
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
from largebatch.lab.pictures import Series, lines, over_seeds
from largebatch.lab.whole_batch import WholeBatch
from largebatch.optim import SGD

WIDTHS = (64, 64, 64, 10)
LOW, HIGH = 1e-3, 30.0


def ramp(samples: Samples, batch: int, steps: int, seed: int) -> tuple[list[float], list[float]]:
    """Return rates, each a constant factor above the one before, and the loss at each step."""
    model = perceptron(WIDTHS, seed)
    optimizer, losses = SGD(model.parameters(), lr=LOW), list[float]()

    def growth(done: float) -> float:
        return (HIGH / LOW) ** done

    for loss in descend(model, samples, optimizer, batch, steps, seed, schedule=growth):
        losses.append(loss)
        if not loss < 1e4:
            break
    return [LOW * growth(number / steps) for number in range(len(losses))], losses


def largest_stable(rates: list[float], losses: list[float]) -> float:
    """Return the last rate before half of what had been gained is lost, by means of five steps."""
    near = [sum(losses[k : k + 5]) / 5 for k in range(len(losses) - 4)]
    finite = [value if value == value else math.inf for value in near]
    lowest = finite.index(min(finite))
    limit = (finite[0] + finite[lowest]) / 2
    lost = (k for k in range(lowest, len(finite)) if finite[k] > limit)
    return rates[next(lost, len(finite) - 1)]


@experiments.register("lr-range")
class RateRange(Experiment):
    """Raises the rate at several batches, and trains at fixed rates."""

    lecture = "Optimization Techniques (KAIST AI602)"
    claim = "learning rate is critical: too high may diverge, too low converges slowly"
    source = "Smith 2017, section 3.3"
    minutes = 0.3

    def measure(self, scale: Scale) -> Findings:
        """Find the largest rate of each batch, and how the loss depends on the rate."""
        samples = digits("train")
        count, steps = len(samples[1]), scale.pick(150, 600)
        batches = scale.pick((16, count), (8, 32, 128, 512, count))
        stable, rows, series = list[list[float]](), list[dict[str, float]](), list[Series]()
        for seed in scale.seeds:
            run = []
            for batch in batches:
                rates, losses = ramp(samples, batch, steps, seed)
                run.append(largest_stable(rates, losses))
                rows.append({"seed": seed, "batch": batch, "largest stable rate": run[-1]})
                if seed == scale.seeds[0]:
                    series.append(Series(f"batch {batch}", rates[:-1], losses[:-1]))
            stable.append(run)
        fixed = [LOW * 10 ** (k / 2) for k in range(9)]
        ends = [[self._end(samples, rate, steps, seed) for rate in fixed] for seed in scale.seeds]
        best = [run.index(min(run)) for run in ends]
        slow = [run[0] / min(run) for run in ends]
        high = [not run[-1] < math.log(10) for run in ends]
        grown = [run[-1] / run[0] for run in stable]
        checks = [
            Check("the best of rates from 0.001 to 10 lies between them", "yes",
                  spread([fixed[number] for number in best]),
                  agreed(0 < number < len(fixed) - 1 for number in best)),
            Check("loss at the lowest rate over that at the best, after as many steps",
                  "slow: over 2", spread(slow), agreed(ratio > 2 for ratio in slow)),
            Check("the highest rate ends no better than guessing", "yes",
                  f"{sum(high)} of {len(high)} seeds", agreed(high)),
            Check(f"largest stable rate, batch {count} over batch {batches[0]}", "above 1",
                  spread(grown), agreed(ratio > 1 for ratio in grown)),
        ]  # fmt: skip
        capped = [[min(loss, 10.0) if loss == loss else 10.0 for loss in run] for run in ends]
        charts = [
            ("Range test", f"seed {scale.seeds[0]}",
             lines("rate", "loss of the step", series, log="xy")),
            ("Loss by rate", f"of the whole set after {steps} steps of batch 32, at most 10",
             lines("rate", "loss", [over_seeds("loss", fixed, capped, "lines+markers")],
                   log="xy")),
            ("Largest stable rate by batch", "",
             lines("batch", "rate", [over_seeds("rate", batches, stable, "lines+markers")],
                   log="xy")),
        ]  # fmt: skip
        return Findings(checks, rows, charts, ["Perceptron 64-64-64-10 on the digits, plain SGD."])

    def _end(self, samples: Samples, rate: float, steps: int, seed: int) -> float:
        model = perceptron(WIDTHS, seed)
        fit(model, samples, SGD(model.parameters(), lr=rate), 32, steps, seed)
        return float(WholeBatch(model, samples).loss())
