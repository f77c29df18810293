"""Compare the errors of group norm and batch norm as the batch grows.

Wu and He 2018, figure 1: a batch norm's statistics get worse as the batch shrinks, a group norm has
none of it; at a large batch the batch norm is the better one.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from largebatch.lab.experiment import (
    Check,
    Experiment,
    Findings,
    Scale,
    agreed,
    experiments,
    spread,
)
from largebatch.lab.pictures import lines, over_seeds
from largebatch.lab.short_run import digits_run

NORMS = {
    "batch norm": ("--norm.kind=batch",),
    "group norm": ("--norm.kind=group", "--norm.groups=8"),
}
RATE, REFERENCE = 0.05, 32


def digits_error(batch: int, factor: float, epochs: int, seed: int, more: Sequence[str]) -> float:
    """Return the error on the held-out digits; 1 of a run that diverged.

    Args:
        factor: on a rate of 0.05 at batch 32, which follows the batch in proportion.
        more: options of the norm.
    """
    batches = (f"--batch.size={batch}", f"--batch.reference={REFERENCE}")
    rates = (f"--optim.lr={RATE * factor}", "--optim.scaling=linear")
    summary = digits_run(epochs, seed, (*batches, *rates, *more))
    return 1.0 - float(summary["top1"]) if "top1" in summary else 1.0


@experiments.register("gn-vs-bn")
class GroupOrBatchNorm(Experiment):
    """`digits_cnn`, equal epochs, the rate in proportion to the batch and tuned at each."""

    lecture = "Optimization Techniques (KAIST AI602)"
    claim = "GN works well for small-batch training; worse than BN in large-batch training"
    source = "Wu and He 2018, figure 1"
    minutes = 4.0

    def measure(self, scale: Scale) -> Findings:
        """Compare, seed by seed, the errors at each norm's best rate on average."""
        batches = scale.pick((16, 256), (4, 16, 64, 256))
        epochs, factors = scale.pick((1, (1.0,)), (6, (0.25, 1.0, 4.0)))
        best: dict[tuple[str, int], list[float]] = {}
        rates: dict[tuple[str, int], float] = {}
        for name, more in NORMS.items():
            for batch in batches:
                tried = {
                    factor: [digits_error(batch, factor, epochs, s, more) for s in scale.seeds]
                    for factor in factors
                }
                chosen = min(tried, key=lambda factor: mean(tried[factor]))
                best[name, batch] = tried[chosen]
                rates[name, batch] = RATE * chosen * batch / REFERENCE
        checks = []
        for batch, words, sign in (
            (batches[0], "GN works well: no more than BN's", 1),
            (batches[-1], "GN worse than BN", -1),
        ):
            pairs = list(zip(best["group norm", batch], best["batch norm", batch], strict=True))
            held = agreed(g <= b if sign == 1 else g > b for g, b in pairs)
            compared = " against ".join(spread([100 * p[n] for p in pairs]) for n in (0, 1))
            what = f"error at batch {batch}, group norm against batch norm, %"
            checks.append(Check(what, words, compared, held))
        rows = [
            {
                "norm": name,
                "batch": batch,
                "error %": spread([100 * e for e in errors]),
                "rate": rates[name, batch],
            }
            for (name, batch), errors in best.items()
        ]
        series = [
            over_seeds(
                name,
                batches,
                list(zip(*(best[name, batch] for batch in batches), strict=True)),
                "lines+markers",
            )
            for name in NORMS
        ]
        note = f"{epochs} epochs; statistics over the batch; band: the seeds"
        chart = ("Error by batch", note, lines("batch", "error", series, log="x", percent=True))
        notes = [f"one held-out image in 355 is {100 / 355:.2f}%"]
        return Findings(checks, rows, [chart], notes)
