"""Large batches lead to sharp minima, small batches to wide ones.

Keskar et al. 2017, "On large-batch training for deep learning: generalization gap and sharp
minima": sharpness phi (section 2.2.2) and the loss along the line between both solutions (figure
3). Here a tenth of the set is the large batch, as there, and Adam trains for equal epochs.
"""

from __future__ import annotations

import torch

from largebatch.lab.descent import accuracy, fit
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
from largebatch.lab.pictures import Series, lines
from largebatch.lab.whole_batch import WholeBatch, loss_of
from largebatch.probes.parameter_space import ParameterSpace
from largebatch.probes.sharpness import box_of, sharpness
from largebatch.weight_space import moved, weights_of

SMALL, LARGE = 8, 144  # 250 and 5,000 of CIFAR-10's 50,000 samples are 1/200 and 1/10
SIZES = (2.5e-4, 5e-4, 1e-3)


def phi(model: torch.nn.Module, replay: WholeBatch, epsilon: float, kind: str = "keskar") -> float:
    """Return the sharpness in percent: 100 (highest loss in the box - loss) / (1 + loss)."""
    space = ParameterSpace(model)
    box = box_of("filters" if kind == "filters" else "keskar", space, epsilon)
    low, high = sharpness(space, replay, box, 10, 0)
    return 100 * (high - low) / (1 + low)


def on_a_parabola() -> tuple[list[float], list[float]]:
    """Return sharpness of 1/2 sum h x^2 as found, and in closed form: a corner of the box."""
    curvatures = torch.tensor([0.1, 1.0, 30.0], dtype=torch.float64)
    model = torch.nn.Linear(3, 1, bias=False, dtype=torch.float64)
    x = torch.tensor([[0.5, -0.3, 0.2]], dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(x)
    # Outputs of the rows diag(sqrt h) are sqrt(h) x, their mean square sum h x^2 / 3.
    samples = torch.diag(curvatures.sqrt()), torch.zeros(3, 1, dtype=torch.float64)
    replay = WholeBatch(model, samples, lambda out, _: 1.5 * out.square().mean())
    found = [phi(model, replay, epsilon) for epsilon in SIZES]
    low = float((curvatures * x.square()).sum() / 2)
    known = []
    for epsilon in SIZES:
        corner = x.abs() + epsilon * (x.abs() + 1)
        high = float((curvatures * corner.square()).sum() / 2)
        known.append(100 * (high - low) / (1 + low))
    return found, known


@experiments.register("keskar")
class SharpMinima(Experiment):
    """Trains a perceptron with batch norm at both batches, and measures sharpness at the ends."""

    lecture = "An overview of empirical studies in NNs (Sagun)"
    claim = "large-batch training finds a sharp minimum and generalizes worse; small batches: wide"
    source = "Keskar et al. 2017, section 2.2"
    minutes = 1.1
    seeds = 5

    def measure(self, scale: Scale) -> Findings:
        """Compare the batches seed by seed, in Keskar's box and in one of filters."""
        train, val = digits("train"), digits("val")
        epochs = scale.pick(6, 60)
        rows, charts = list[dict[str, float]](), []
        for seed in scale.seeds:
            ends = []
            for batch in (SMALL, LARGE):
                model = perceptron((64, 64, 64, 64, 10), seed, norm=True)
                optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
                steps = epochs * (len(train[1]) // batch)
                fit(model, train, optimizer, batch, steps, seed)
                replay = WholeBatch(model, train)
                row: dict[str, float] = {"seed": seed, "batch": batch, "loss": float(replay.loss())}
                row |= {f"sharpness, {size:g}": phi(model, replay, size) for size in SIZES}
                row["sharpness, filters"] = phi(model, replay, 1e-2, "filters")
                row |= {"train": accuracy(model.eval(), train), "held out": accuracy(model, val)}
                rows.append(row)
                ends.append(weights_of(model.train()))
            if seed == scale.seeds[0]:
                difference = {name: ends[1][name] - w for name, w in ends[0].items()}
                at = [-1 + 3 * k / 24 for k in range(25)]
                curves = [
                    Series(name, at, [loss_of(model, data)(moved(ends[0], (difference, a)))
                                      for a in at])
                    for name, data in (("train", train), ("held out", val))
                ]  # fmt: skip
                drawing = lines("alpha", "loss", curves,
                                marks={f"batch {SMALL}": 0, f"batch {LARGE}": 1})  # fmt: skip
                charts.append(("Between both solutions", "batch norms by each set", drawing))
        small, large = rows[::2], rows[1::2]

        def both(key: str) -> list[tuple[float, float]]:
            return [(a[key], b[key]) for a, b in zip(small, large, strict=True)]

        found, known = on_a_parabola()
        apart = max(abs(a / b - 1) for a, b in zip(found, known, strict=True))
        kinds = {f"sharpness, {SIZES[-1]:g}": "Keskar's sharpness",
                 "sharpness, filters": "filter-normalised sharpness"}  # fmt: skip
        checks = [
            *(Check(f"{words}, batch {LARGE} over batch {SMALL}", "above 1",
                    spread([b / a for a, b in both(key)]), agreed(b > a for a, b in both(key)))
              for key, words in kinds.items()),
            Check(f"held-out accuracy, batch {SMALL} less batch {LARGE}", "above 0",
                  spread([a - b for a, b in both("held out")]),
                  agreed(a > b for a, b in both("held out"))),
            Check("sharpness of a parabola against its closed form, relative error", "0 (to 1e-6)",
                  f"{apart:.1e}", apart < 1e-6, exact=True),
            Check("sharpness of a parabola grows with the box", "yes",
                  ", ".join(f"{value:.3g}" for value in found), found == sorted(found), exact=True),
        ]  # fmt: skip
        note = f"Perceptron 64-64-64-64-10 with batch norm, Adam, rate 1e-3, {epochs} epochs each."
        return Findings(checks, rows, charts, [note])
