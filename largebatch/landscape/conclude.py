"""Make the record of a landscape from its points: the results of the pictures in figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from largebatch.landscape.judge import Judge
from largebatch.landscape.networks import Networks
from largebatch.landscape.points import number
from largebatch.landscape.settings import TRAINED, Settings
from largebatch.record import BenchmarkRecord
from largebatch.weight_space import loss_barrier

FORMULA = {
    1: """\
loss(w + a d): mean over the samples, at a multiple a of a Gaussian direction d, filter by filter
d_f |w_f| / |d_f| (Li et al. 2018)
smooth: mean over noise n of loss(w + a d + width n), n filter-normalised too, both +n and -n""",
    2: """\
barrier: max over t of loss(w(t)) - ((1 - t) loss(w(0)) + t loss(w(1))), over the points
line: (1 - t) w1 + t w2
bezier, of three bends: (1 - t)^2 w1 + 2 t (1 - t) b + t^2 w2
polychain: a line from bend to bend (Garipov et al. 2018)""",
}
WORDS = {
    "as-trained": "running statistics of batch norms are the run's at every point",
    "recomputed": "running statistics of batch norms are recomputed at every point, of"
    " {} training samples",
    "interpolated": "running statistics of batch norms are interpolated as the weights are",
}


def conclude(
    settings: Settings,
    networks: Networks,
    judge: Judge,
    found: dict[str, list[dict[str, Any]]],
) -> BenchmarkRecord:
    """Return the record of a landscape whose points are all measured."""
    headline = networks.run.task.headline
    task = networks.run.task
    runs = found.pop("runs")
    rows = [
        _row(name, points, headline.name, headline.better == "higher", len(settings.runs))
        for name, points in found.items()
    ]
    notes = [
        f"{judge.count:,} samples of {settings.split}, seed {settings.seed}",
    ]
    if networks.statistics[0]:
        notes.append(WORDS[settings.statistics].format(f"{judge.statistics_count:,}"))
    if len(settings.runs) == 1:
        still = "stay" if settings.one_dimensional == "zero" else "are moved along themselves"
        notes.append(f"biases and parameters of norms {still}")
    if set(settings.pictures) & set(TRAINED):
        length = settings.length or f"the first run's {networks.run.config.schedule.length}"
        notes.append(
            f"curves have {settings.bends} bends, are trained for {length} by the first run's"
            " optimizer, whose weight decay is of the bends, and begin on the line"
        )
    details = {
        "runs": [
            {"name": name, "weights_sha256": digest, **point}
            for name, digest, point in zip(networks.names, networks.digests, runs, strict=True)
        ],
        "headline": task.known(headline.name).record(),
        "extent": settings.extent,
        "pictures": found,
    }
    return BenchmarkRecord(
        "landscape", FORMULA[len(settings.runs)], rows, notes=notes, details=details
    )


def _row(
    name: str, points: Sequence[dict[str, Any]], headline: str, higher: bool, runs: int
) -> dict[str, Any]:
    losses = [number(point["loss"]) for point in points]
    highest = max(range(len(points)), key=losses.__getitem__)
    row: dict[str, Any] = {
        "picture": name,
        "points": len(points),
        "lowest loss": _short(min(losses)),
        "highest loss": _short(losses[highest]),
        "highest at": ", ".join(f"{each:.3g}" for each in points[highest]["at"]),
    }
    values = [number(point[headline]) for point in points if headline in point]
    told = headline != "loss" and len(values) == len(points)
    if told:
        row[f"worst {headline}"] = _short(min(values) if higher else max(values))
    if runs == 2:
        places = [point["at"][0] for point in points]
        row["barrier"] = _short(loss_barrier(places, losses))
        if told:
            row[f"{headline} barrier"] = _short(
                loss_barrier(places, [-value if higher else value for value in values])
            )
    return row


def _short(value: float) -> float:
    return float(f"{value:.6g}")
