"""Sharpness depends on the parametrization: the same function can have any sharpness.

Dinh, Pascanu, Bengio, Bengio 2017, "Sharp minima can generalize for deep nets", section 4: the
first layer of a ReLU network times alpha and the second over alpha compute the same. With D the
diagonal of 1 / alpha and alpha, the Hessian becomes D H D.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

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
from largebatch.lab.whole_batch import WholeBatch, dense_hessian
from largebatch.optim import SGD
from largebatch.probes.parameter_space import ParameterSpace
from largebatch.probes.sharpness import box_of, sharpness

ALPHAS = (1.0, 3.0, 5.0, 10.0)


def factors(model: nn.Sequential, alpha: float) -> Tensor:
    """Return what each weight of a network of two layers is multiplied by; the last bias by 1."""
    parts = zip(model.parameters(), (alpha, alpha, 1 / alpha, 1.0), strict=True)
    return torch.cat([torch.full((p.numel(),), factor, dtype=p.dtype) for p, factor in parts])


@experiments.register("dinh")
class Reparametrized(Experiment):
    """Rescales a trained network, and measures curvature and both kinds of sharpness."""

    lecture = "An overview of empirical studies in NNs (Sagun)"
    claim = "sharpness depends on parametrization"
    source = "Dinh et al. 2017, section 4; Li et al. 2018, section 4 (filters)"
    minutes = 0.4

    def measure(self, scale: Scale) -> Findings:
        """Compare with what the factors predict of the network before."""
        samples = digits("train", torch.float64, limit=scale.pick(200, 1442))
        rows = list[dict[str, float]]()
        outputs, predicted, filters = list[float](), list[float](), list[float]()
        for seed in scale.seeds:
            model = perceptron((64, 16, 10), seed, dtype=torch.float64)
            optimizer = SGD(model.parameters(), lr=0.1)
            fit(model, samples, optimizer, 50, scale.pick(300, 2000), seed)
            space, replay = ParameterSpace(model), WholeBatch(model, samples)
            plain, same = space.weights(), model(samples[0]).detach()
            hessian = dense_hessian(model, samples)
            for alpha in ALPHAS:
                scaled = factors(model, alpha)
                space.set(plain * scaled)
                row: dict[str, float] = {"seed": seed, "alpha": alpha}
                outputs.append(float((model(samples[0]) - same).detach().abs().max()))
                own = torch.linalg.eigvalsh(dense_hessian(model, samples))
                expected = torch.linalg.eigvalsh(hessian / scaled / scaled[:, None])
                row["largest eigenvalue"] = float(own[-1])
                predicted.append(abs(float(own[-1] / expected[-1]) - 1))
                for kind in ("keskar", "filters"):
                    box = box_of(kind, space, 1e-3)
                    low, high = sharpness(space, replay, box, 5, seed)
                    row[f"sharpness, {kind}"] = 100 * (high - low) / (1 + low)
                rows.append(row)
                if alpha == 1:
                    first = row["sharpness, filters"]
                filters.append(abs(row["sharpness, filters"] / first - 1))
        figures = ("largest eigenvalue", "sharpness, keskar", "sharpness, filters")
        curves = {
            name: [[row[name] for row in rows if row["seed"] == seed] for seed in scale.seeds]
            for name in figures
        }
        grown = {name: [run[-1] / run[0] for run in runs] for name, runs in curves.items()}
        last = ALPHAS[-1]
        checks = [
            Check(f"largest eigenvalue at alpha {last:g} over that at 1", "larger at will: over 10",
                  spread(grown[figures[0]]), agreed(g > 10 for g in grown[figures[0]])),
            Check(f"Keskar's sharpness at alpha {last:g} over that at 1", "changes: over 2",
                  spread(grown[figures[1]]), agreed(g > 2 for g in grown[figures[1]])),
            Check("outputs of the rescaled network, largest difference", "0 (to 1e-9)",
                  f"{max(outputs):.1e}", max(outputs) < 1e-9, exact=True),
            Check("largest eigenvalue against that of D H D, relative error", "0 (to 1e-6)",
                  f"{max(predicted):.1e}", max(predicted) < 1e-6, exact=True),
            Check("filter-normalised sharpness, relative change", "0 (to 1e-6)",
                  f"{max(filters):.1e}", max(filters) < 1e-6, exact=True),
        ]  # fmt: skip
        series = [over_seeds(name, ALPHAS, runs, "lines+markers") for name, runs in curves.items()]
        drawing = lines("alpha", "value", series, log="xy")
        note = "of one function: layers times alpha and over alpha"
        return Findings(checks, rows, [("Sharpness of one function", note, drawing)])
