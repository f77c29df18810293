"""Read the data of a run that a report shows: series, figures and config."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from largebatch._documents import parse_yaml
from largebatch._errors import UserError
from largebatch.record import SIDE, RunDirectory, is_number, read_file, read_metrics
from largebatch.report.figures import Judged, read_judged
from largebatch.report.thinning import thin

MOST_POINTS = 2000
MOST_COLUMNS = 200  # of a map of layers
MOST_RANKS = 8  # drawn one by one
PLACES = ("samples", "step", "epoch")
NORMS = ("weight", "update", "ratio")  # the numbers of a tensor in layers.jsonl
NOISE = ("signal", "trace", "noise")  # of a line of its own there: |G|^2, T and their ratio
IDENTITY = (*PLACES, "split", "order_hash", "count")
OF_THE_MODEL = ("weight_norm", "weight_distance")  # of no split, whichever line they stand on
OF_A_STEP = ("compute_seconds", "communication_seconds", "optimizer_seconds", "data_seconds")

Series = dict[str, list[float]]


@dataclass
class Run:
    """One run, ready to be drawn.

    Args:
        name: shown in tables and legends; the directory's name.
        series: ``series[split][key]`` holds ``samples``, ``step``, ``epoch`` and ``value``, lists
            of one length. Training series are thinned, evaluations are exact. Figures of the
            model itself, such as its weights' norm, are with training.
        hardware: ``hardware[key][rank]`` is the series of one rank, such as ``rank 0``; of many
            ranks there are only ``lowest``, ``mean`` and ``highest``.
        row: the run's cells in the table of runs, as text, without the figures it is judged by.
        judged: the figures that the run is judged by.
        last: the numbers of the run's last evaluation and of its summary.
        config: the resolved config as written; empty if there is none.
        keys: the config with dotted keys.
        finished: whether the run has left its summary.
        remarks: messages about data that are not shown.
        layers: of a layer-wise optimizer, else None: ``names`` of the tensors; ``samples``,
            ``step`` and ``epoch``, lists of one length; ``weight``, ``update`` and ``ratio``, a row
            of that length for each tensor.
        noise: of a run that measured its noise scale by layer, else None: the same with ``noise``
            in place of the three.
        spectrum: of a run that measured eigenvalues of its Hessian, else None: ``samples``,
            ``step``, ``epoch``, ``value`` and ``weight`` of each, lists of one length.
    """

    name: str
    series: dict[str, dict[str, Series]]
    hardware: dict[str, dict[str, Series]]
    row: dict[str, str]
    judged: Judged
    last: dict[str, float]
    config: str
    keys: dict[str, str]
    finished: bool
    remarks: list[str] = field(default_factory=list)
    layers: dict[str, list[Any]] | None = None
    noise: dict[str, list[Any]] | None = None
    spectrum: dict[str, list[float]] | None = None

    def has(self, name: str) -> bool:
        """Return whether the run has a value of this name, in an evaluation or in training."""
        return name in self.last or any(name in split for split in self.series.values())


def read_run(path: str | Path) -> Run:
    """Read a run directory; damaged lines of its metrics are left out.

    Raises:
        UserError: there is no such run, it has no metrics yet, or its config, its summary or its
            task's record is damaged.
    """
    directory = RunDirectory(path)
    if not directory.path.is_dir():
        raise UserError(f"{path}: no such run directory")
    remarks: list[str] = []
    lines = read_metrics(directory.metrics, remarks.append)
    if not lines:
        raise UserError("; ".join([f"{directory.metrics}: no whole line yet", *remarks]))
    text, config = _read_config(directory)
    summary = directory.read_summary()
    keys = dict(_flat(config))
    evaluations = [line for line in lines if line["split"] == "val"]
    last = evaluations[-1] if evaluations else {}
    told = {key: value for key, value in (summary or {}).items() if value is not None}
    of_layers: list[dict[str, Any]] = []
    if directory.layers.exists():
        of_layers = read_metrics(directory.layers, remarks.append)
    of_spectra: list[dict[str, Any]] = []
    if directory.spectrum.exists():
        of_spectra = read_metrics(directory.spectrum, remarks.append)
    return Run(
        name=Path(os.path.abspath(directory.path)).name,
        series={split: _series(lines, split) for split in ("train", "val")},
        hardware=_hardware([line for line in lines if line["split"] == "hardware"]),
        row=_row(keys, config, told, lines),
        judged=read_judged(directory, evaluations, remarks),
        last={key: value for key, value in {**last, **told}.items() if is_number(value)},
        config=text,
        keys=keys,
        finished=summary is not None,
        remarks=remarks,
        layers=_layers(of_layers, "layers", NORMS),
        noise=_layers(of_layers, "noise", NOISE),
        spectrum=_spectrum([line for line in of_spectra if line["split"] == "spectrum"]),
    )


def _spectrum(lines: list[dict[str, Any]]) -> dict[str, list[float]] | None:
    """Return eigenvalues with their weights, of at most ``MOST_COLUMNS`` steps; None without."""
    points: list[tuple[float, ...]] = []
    for line in lines[:: -(-len(lines) // MOST_COLUMNS) or 1]:
        place = tuple(line.get(key, 0) for key in PLACES)
        lists = (line.get("values"), line.get("weights"))
        values, weights = (each if isinstance(each, list) else [] for each in lists)
        for value, weight in zip(values, weights, strict=False):
            if is_number(value) and is_number(weight) and weight > 0:
                points.append((*place, float(f"{value:.4g}"), float(f"{weight:.4g}")))
    if not points:
        return None
    columns = zip(*points, strict=True)
    names = (*PLACES, "value", "weight")
    return {name: list(column) for name, column in zip(names, columns, strict=True)}


def _layers(
    lines: list[dict[str, Any]], split: str, numbers: tuple[str, ...]
) -> dict[str, list[Any]] | None:
    """Return a map of layers, at most ``MOST_COLUMNS`` steps of it, four digits a number."""
    lines = [line for line in lines if line["split"] == split]
    if not lines:
        return None
    lines = lines[:: -(-len(lines) // MOST_COLUMNS)]
    names = list({name: None for line in lines for name in line["layers"]})
    none = [None] * len(numbers)
    columns = [[line["layers"].get(name, none) for line in lines] for name in names]
    return {
        "names": names,
        **{place: [line.get(place, 0) for line in lines] for place in PLACES},
        **{
            norm: [[_rounded(cell[index]) for cell in row] for row in columns]
            for index, norm in enumerate(numbers)
        },
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None or not is_number(value) else float(f"{value:.4g}")


def _series(lines: list[dict[str, Any]], split: str) -> dict[str, Series]:
    """Return every numeric key of a split over its places."""
    found: dict[str, list[tuple[float, ...]]] = {}
    for line in lines:
        place = tuple(line.get(key, 0) for key in PLACES)
        for key, value in line.items():
            side = SIDE.get(line["split"], line["split"])
            belongs = "train" if key in OF_THE_MODEL else side
            if belongs == split and key not in IDENTITY and is_number(value):
                found.setdefault(key, []).append((*place, value))
    series = {}
    most = MOST_POINTS if split == "train" else len(lines)
    # What is stacked needs the same points in every layer: those that suit the sum.
    layers = [[point[-1] for point in found[key]] for key in OF_A_STEP if key in found]
    sums = [sum(layer) for layer in zip(*layers, strict=False)]
    weights = dict.fromkeys(OF_A_STEP, sums)
    for key, points in found.items():
        points = _without_short_steps(points) if key == "batch_size" else points
        kept = thin(weights.get(key) or [point[-1] for point in points], most)
        series[key] = _columns([points[index] for index in kept])
    for low in (key for key in found if key.endswith("_low")):
        # An interval has its ends, where it has both, at the same points.
        places = set(zip(*(series[low][place] for place in PLACES), strict=True))
        for key in (low.removesuffix("_low"), low.removesuffix("_low") + "_high"):
            kept_points = [point for point in found.get(key, []) if point[:-1] in places]
            if kept_points:
                series[key] = _columns(kept_points)
    return series


def _columns(points: list[tuple[float, ...]]) -> Series:
    """Turn points (samples, step, epoch, value) into columns."""
    columns = zip(*points, strict=True)
    return {name: list(column) for name, column in zip((*PLACES, "value"), columns, strict=True)}


def _hardware(lines: list[dict[str, Any]]) -> dict[str, dict[str, Series]]:
    """Return every numeric key of the ranks' hardware, a series for each rank or over all."""
    found: dict[str, dict[tuple[float, ...], dict[int, float]]] = {}
    for line in lines:
        place = tuple(line.get(key, 0) for key in PLACES)
        for key, value in line.items():
            if key not in (*IDENTITY, "rank") and is_number(value):
                found.setdefault(key, {}).setdefault(place, {})[line["rank"]] = value
    hardware = {}
    for key, places in found.items():
        drawn: dict[str, list[tuple[float, ...]]] = {}
        ranks = sorted({rank for values in places.values() for rank in values})
        for place, values in places.items():
            shown: dict[str, float] = {f"rank {rank}": values[rank] for rank in sorted(values)}
            if len(ranks) > MOST_RANKS:
                every = values.values()
                mean = sum(every) / len(every)
                shown = {"lowest": min(every), "mean": mean, "highest": max(every)}
            for name, value in shown.items():
                drawn.setdefault(name, []).append((*place, value))
        hardware[key] = {
            name: _columns([points[i] for i in thin([p[-1] for p in points], MOST_POINTS)])
            for name, points in drawn.items()
        }
    return hardware


def _without_short_steps(points: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """Leave out the short last step of each epoch, which would draw a comb."""
    sizes = [point[-1] for point in points]
    following = [*sizes[1:], sizes[-2] if len(sizes) > 1 else sizes[-1]]
    before = [sizes[0], *sizes[:-1]]
    return [
        point
        for point, last, size, following_size in zip(points, before, sizes, following, strict=True)
        if not (size < last and size < following_size)
    ]


def _row(
    keys: dict[str, str],
    config: dict[str, Any],
    summary: dict[str, Any],
    lines: list[dict[str, Any]],
) -> dict[str, str]:
    """Return the table's cells; what the summary does not tell is taken from the lines."""
    rates = [rate for line in lines if is_number(rate := line.get("samples_per_second")) and rate]
    left_out = [line["nonfinite_steps"] for line in lines if is_number(line.get("nonfinite_steps"))]
    figures = {
        "nonfinite_steps": max(left_out, default=0),
        "samples_per_second": sorted(rates)[len(rates) // 2] if rates else None,
        **summary,
    }
    return {
        "model": keys.get("model.name", "–"),
        "data": keys.get("data.name", "–"),
        "batch": _batch(config, figures),
        "ranks": _number(figures.get("world_size"), ",.0f"),
        "samples/s": _number(figures["samples_per_second"], ",.0f"),
        "wall time": _duration(figures.get("wall_seconds")),
        "not finite": _number(figures["nonfinite_steps"], ",.0f"),
    }


def _batch(config: dict[str, Any], figures: dict[str, Any]) -> str:
    """Return the batch, or the batches of the plan's phases in order."""
    section = config.get("batch")
    section = section if isinstance(section, dict) else {}
    size, plan = section.get("size", figures.get("global_batch")), section.get("plan")
    phases = plan if isinstance(plan, list) else []
    sizes = [phase.get("size") or size for phase in phases if isinstance(phase, dict)] or [size]
    changes = [new for old, new in zip([None, *sizes], sizes, strict=False) if new != old]
    return " → ".join(_number(size, ",.0f") for size in changes) or "–"


def _number(value: Any, form: str) -> str:
    return format(value, form) if is_number(value) else "–"


def _duration(seconds: Any) -> str:
    if not is_number(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _read_config(directory: RunDirectory) -> tuple[str, dict[str, Any]]:
    name = f"{directory.config}: damaged"
    try:
        text = read_file(directory.config).decode("utf-8")
    except FileNotFoundError:
        return "", {}
    except (OSError, ValueError) as error:
        raise UserError(f"{name} ({error})") from None
    config = parse_yaml(text, name)
    if not isinstance(config, dict):
        raise UserError(f"{name}: no sections")
    return text, config


def _flat(config: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", "null" if value is None else str(value)
