"""The gradient lies mostly in the space of the Hessian's top eigenvectors, one for each class.

Gur-Ari, Roberts, Dyer 2018, "Gradient descent happens in a tiny subspace".
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from largebatch.lab.descent import descend
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

CLASSES = 10


def share(vectors: Tensor, gradient: Tensor) -> float:
    """Return the share of a gradient's squared norm in the space of orthonormal vectors (k, n)."""
    return float((vectors @ gradient).square().sum() / gradient.square().sum())


@experiments.register("grad-overlap")
class GradientOverlap(Experiment):
    """Measures the share of the gradient in the top-10 space along SGD on the digits."""

    lecture = "An overview of empirical studies in NNs (Sagun)"
    claim = "gradients live in the top eigenspace"
    source = "Gur-Ari, Roberts, Dyer 2018, section 2"
    minutes = 0.2

    def measure(self, scale: Scale) -> Findings:
        """Look ten times: the step's own loss is the whole set's, and so is the Hessian."""
        samples = digits("train", torch.float64, limit=scale.pick(500, 1442))
        steps, looks = scale.pick(400, 2000), 10
        shares, spans = list[list[float]](), list[float]()
        for seed in scale.seeds:
            model, run = (
                perceptron((64, 32, 10), seed, activation=nn.Tanh, dtype=torch.float64),
                list[float](),
            )
            space, replay = ParameterSpace(model), WholeBatch(model, samples)
            path = descend(model, samples, SGD(space.params.values(), lr=0.1), 50, steps, seed)
            start = space.random(seed)
            for _ in range(looks + 1):
                ritz = lanczos(Hessian(space, replay), start, 60, space)
                top, gradient = ritz.vectors[-CLASSES:], space.flat(replay.gradient())
                run.append(share(top, gradient))
                spans.append(share(top, top.T @ (top @ gradient)))
                start = ritz.vectors[-2 * CLASSES :].sum(0)
                for _ in zip(range(steps // looks), path, strict=False):
                    pass
            shares.append(run)
        late = [sum(run[looks // 2 :]) / len(run[looks // 2 :]) for run in shares]
        inside = [value for run in shares for value in run]
        plain = CLASSES / space.size
        checks = [
            Check("mean share in the second half of training", "most of the gradient",
                  spread(late), agreed(value > 0.5 for value in late)),
            Check("the share lies in 0 to 1", "always", f"{min(inside):.3f} to {max(inside):.3f}",
                  min(inside) >= 0 and max(inside) <= 1 + 1e-9, exact=True),
            Check("a gradient in the span has the share 1", "1 to 1e-9",
                  f"1 - {1 - min(spans):.0e}", max(abs(1 - one) for one in spans) < 1e-9,
                  exact=True),
        ]  # fmt: skip
        every = steps // looks
        at = [every * number for number in range(looks + 1)]
        rows = [{"step": step, **{f"seed {seed}": round(run[number], 4)
                                  for seed, run in zip(scale.seeds, shares, strict=True)}}
                for number, step in enumerate(at)]  # fmt: skip
        note = f"share of the whole set's gradient in the {CLASSES} top eigenvectors"
        drawing = lines("step", "share", [over_seeds("share", at, shares, "lines+markers")],
                        levels={"a random direction": plain}, percent=True)  # fmt: skip
        return Findings(
            checks, rows, [("Gradient in the top eigenspace", note, drawing)],
            [f"Tanh perceptron 64-32-10, {space.size:,} parameters; SGD of rate 0.1, batch 50. A"
             f" random direction has a share of {plain:.2%}."],
        )  # fmt: skip
