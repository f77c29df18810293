"""How gradients come down through a deep perceptron that nobody has trained yet.

v <- W'(v rho'(z)): every layer multiplies the gradient of its input by the weights' scale and the
activation's slope. Initialisation keeps the product near one, or the gradient vanishes with depth.
"""

from __future__ import annotations

import operator

import torch

from largebatch.lab.deep_perceptron import (
    ACTIVATIONS,
    RULES,
    deep,
    factor,
    gradients,
    learned,
    lecture_example,
    sampled,
)
from largebatch.lab.digits import digits
from largebatch.lab.experiment import (
    Check,
    Experiment,
    Findings,
    Scale,
    experiments,
    spread,
)
from largebatch.lab.paired import compared
from largebatch.lab.pictures import lines, over_seeds


@experiments.register("init-grad")
class InitialGradients(Experiment):
    """20 hidden layers (quick: 12) of 128, each activation under each rule, then trained."""

    lecture = "Training in practice (lecture 3)"
    claim = "Good init can help fight vanishing gradient; ReLU avoids the saturating regions"
    source = "Glorot and Bengio 2010; He et al. 2015, section 2.2"
    minutes = 2.0

    def measure(self, scale: Scale) -> Findings:
        """Fit the gradient's logarithm against depth; train 12 layers at the best of rates."""
        depth = scale.pick(12, 20)
        samples = digits("train", limit=256)
        found = {
            (activation, rule): [
                gradients(deep(activation, rule, depth, seed), samples) for seed in scale.seeds
            ]
            for activation in ACTIVATIONS
            for rule in RULES
        }
        factors = {key: [factor(norms) for norms in runs] for key, runs in found.items()}
        trained = {
            key: [learned(*key, depth, seed, scale.pick(30, 300)) for seed in scale.seeds]
            for key in found
            if not scale.quick or key in (("relu", "kaiming"), ("relu", "default"))
        }
        zero = lecture_example(torch.zeros(2, 2), torch.zeros(2), 20, torch.tanh)
        rows_kept = lecture_example(torch.tensor([[0.3, 0.2]] * 2), torch.ones(2), 20, torch.relu)
        best = [max(factors["sigmoid", r][n] for r in RULES) for n in range(len(scale.seeds))]
        variances = {rule: sampled(rule) for rule in ("kaiming", "xavier")}
        checks = [
            Check(
                "ReLU, Kaiming: factor of the gradient a layer",
                "1",
                spread(factors["relu", "kaiming"]),
                all(0.9 < f < 1.1 for f in factors["relu", "kaiming"]),
                True,
            ),
            Check(
                "Kaiming's and Xavier's sample variance over the rule's",
                "1 within 2%",
                ", ".join(f"{v:.4f}" for v in variances.values()),
                all(abs(v - 1) < 0.02 for v in variances.values()),
                True,
            ),
            Check(
                "the lecture's zero weights after 20 steps",
                "still 0: the gradient is 0",
                f"largest {float(zero.abs().max()):g}",
                not bool(zero.any()),
                True,
            ),
            Check(
                "the lecture's equal rows after 20 steps",
                "still equal",
                f"{rows_kept[0].tolist()} and {rows_kept[1].tolist()}",
                bool((rows_kept[0] == rows_kept[1]).all() and (rows_kept[0] != 0.3).any()),
                True,
            ),
            Check(
                "ReLU, Xavier: factor a layer",
                "1 / sqrt(2) = 0.707: it was not made for ReLU",
                spread(factors["relu", "xavier"]),
                all(0.63 < f < 0.78 for f in factors["relu", "xavier"]),
                True,
            ),
            Check(
                "sigmoid: factor a layer under the best rule",
                "vanishes: slope 1/4 at most",
                spread(best),
                max(best) < 0.5,
                True,
            ),
            compared(
                f"ReLU, {depth} layers trained: loss, Kaiming against torch's default",
                "good init lets it learn",
                trained["relu", "kaiming"],
                trained["relu", "default"],
                operator.lt,
            ),
        ]
        rows = [
            {
                "activation": activation,
                "init": rule,
                "factor a layer": spread(factors[activation, rule]),
                "first / last layer": spread([n[0] / n[-1] for n in norms]),
                "loss trained": spread(trained[activation, rule])
                if (activation, rule) in trained
                else "",
            }
            for (activation, rule), norms in found.items()
        ]
        series = [
            over_seeds(f"{activation}, {rule}", list(range(depth + 2)), norms)
            for (activation, rule), norms in found.items()
        ]
        chart = (
            "Gradient by depth",
            "norm of the loss's gradient by each layer's output; band: the seeds",
            lines("layer", "gradient norm", series, log="y"),
        )
        return Findings(checks, rows, [chart])
