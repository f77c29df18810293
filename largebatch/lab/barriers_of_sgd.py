"""SGD crosses no barriers of the loss, and there are hardly any barriers.

Xing et al. 2018, "A walk with SGD": the loss is convex between consecutive iterates, which bounce
above a valley's floor. Baity-Jesi et al. 2018: the displacement between two times. Draxler et al.
2018: a path of least loss between solutions, here by the string method. Freeman and Bruna 2017:
barriers fall with the number of weights.
"""

from __future__ import annotations

from math import log

from torch import Tensor

from largebatch.lab.descent import descend
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
from largebatch.lab.mode_connectivity import PLACES, solution
from largebatch.lab.networks import perceptron
from largebatch.lab.pictures import Series, lines, scatter
from largebatch.lab.string_method import string
from largebatch.lab.whole_batch import loss_of
from largebatch.optim import SGD
from largebatch.probes.parameter_space import ParameterSpace
from largebatch.report.log_fit import straight_line
from largebatch.weight_space import WeightPath, loss_barrier, path_losses, polychain, weights_of

BATCH, RATE = 32, 0.1
INSIDE = [k / 8 for k in range(9)]


@experiments.register("barrier-sgd")
class BarriersOfSGD(Experiment):
    """Looks between iterates, at displacements, along strings, and over widths."""

    lecture = "An overview of empirical studies in NNs (Sagun)"
    claim = "no barrier crossing in SGD dynamics; barriers of order 1/N; none between solutions"
    source = "Baity-Jesi et al., Xing et al., Draxler et al. 2018; Freeman and Bruna 2017"
    minutes = 1.1

    def measure(self, scale: Scale) -> Findings:
        """Take the four claims in turn."""
        found = Findings([], [])
        samples = digits("train", limit=scale.pick(400, 1442))
        self._between(found, samples, scale)
        self._strings(found, samples, scale)
        return found

    def _between(self, found: Findings, samples: Samples, scale: Scale) -> None:
        steps, looks = scale.pick(200, 2000), scale.pick(20, 100)
        flat, convex, bounced = list[float](), list[float](), list[float]()
        for seed in scale.seeds:
            model = perceptron((64, 32, 32, 10), seed)
            space, whole = ParameterSpace(model), loss_of(model, samples)
            kept, seen = {0: space.weights()}, list[tuple[bool, bool, bool]]()
            after = weights_of(model)
            path = descend(model, samples, SGD(model.parameters(), lr=RATE), BATCH, steps, seed)
            for number, _ in enumerate(path, 1):
                before, after, kept[number] = after, weights_of(model), space.weights()
                if number % (steps // looks) == 0:
                    on = path_losses(whole, WeightPath([before, after]), INSIDE)
                    bend = [a - 2 * b + c for a, b, c in zip(on, on[1:], on[2:], strict=False)]
                    tiny = 1e-6 * (1 + max(on))  # rounding of losses in float32
                    seen.append((loss_barrier(INSIDE, on) < tiny, min(bend) > -tiny,
                                 min(on[1:-1]) < min(on[0], on[-1]) - tiny))  # fmt: skip
            for column, total in enumerate((flat, convex, bounced)):
                total.append(sum(row[column] for row in seen) / looks)
            found.rows.append({"seed": seed, "without a barrier": flat[-1], "convex": convex[-1],
                               "lowest inside": bounced[-1]})  # fmt: skip
            if seed == scale.seeds[0]:
                waits = [round(steps * share) for share in (0, 0.01, 0.1, 0.5)]
                times = sorted({round(steps ** (k / 16)) for k in range(17)})
                series = [
                    Series(f"from step {wait}", t, [_far(kept[wait + k], kept[wait]) for k in t])
                    for wait in waits
                    for t in [[k for k in times if wait + k <= steps]]
                ]
                found.charts.append(
                    ("Displacement between two times", "mean square a weight, by steps since",
                     lines("steps since", "displacement", series, log="xy"))
                )  # fmt: skip
        found.checks += [
            Check("steps with no barrier of the whole loss between their ends", "all: over 95%",
                  spread(flat), agreed(share > 0.95 for share in flat)),
            Check("steps along which the whole loss is convex", "nearly all: over 90%",
                  spread(convex), agreed(share > 0.9 for share in convex)),
        ]  # fmt: skip

    def _strings(self, found: Findings, samples: Samples, scale: Scale) -> None:
        widths = scale.pick((8, 16, 32), (8, 16, 32, 64))
        steps, rounds = scale.pick(200, 1500), scale.pick(80, 400)
        sizes = list[float]()
        barriers = {"line": list[list[float]](), "string": list[list[float]]()}
        for width in widths:
            own = {"line": list[float](), "string": list[float]()}
            for seed in scale.seeds:
                ends = []
                for number in (2 * seed, 2 * seed + 1):
                    model = perceptron((64, width, 10), number)
                    solution(model, samples, steps, number)
                    ends.append(ParameterSpace(model).weights())
                space, whole = ParameterSpace(model), loss_of(model, samples)
                beads = string(model, ends[0], ends[1], samples, rounds)
                for kind, points in (("line", ends), ("string", beads)):
                    bends = []
                    for point in points:
                        space.set(point)
                        bends.append(weights_of(model))
                    losses = path_losses(whole, WeightPath(bends, polychain), PLACES)
                    own[kind].append(loss_barrier(PLACES, losses))
            sizes.append(float(space.size))
            for kind, values in own.items():
                barriers[kind].append(values)
            found.rows.append({"width": width, "weights": space.size,
                               **{f"barrier of the {k}": sum(v) / len(v)
                                  for k, v in own.items()}})  # fmt: skip
        lower = [
            max(s / max(a, 1e-9) for a, s in zip(line, path, strict=True))
            for line, path in zip(barriers["line"], barriers["string"], strict=True)
        ]
        means = {kind: [sum(v) / len(v) for v in runs] for kind, runs in barriers.items()}
        slope = straight_line(
            [log(n) for n in sizes], [log(max(m, 1e-6)) for m in means["string"]]
        )[0]
        found.checks += [
            Check("barrier of a string over the line's, largest at each width", "none: below 0.1",
                  spread(lower), agreed(ratio < 0.1 for ratio in lower)),
            Check("slope of the string's barrier against the number of weights, logarithms",
                  "-1 (within 0.5)", f"{slope:.2f}", abs(slope + 1) < 0.5),
        ]  # fmt: skip
        series = [Series(kind, sizes, [max(m, 1e-6) for m in values], mode="lines+markers")
                  for kind, values in means.items()]  # fmt: skip
        found.charts.append(
            ("Barriers by size", "mean over pairs of networks; cut off at 1e-6",
             scatter("weights", "barrier", series, log="xy"))
        )  # fmt: skip


def _far(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().mean())
