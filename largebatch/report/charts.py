"""The charts of a report: of the task's figures, of standard metrics, and of all other metrics."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from largebatch.report.figures import TOP1, TOP5, Figure, by_name, title
from largebatch.report.log_fit import log_fit
from largebatch.report.runs import Run

MOST_FURTHER = 100  # charts of further figures: each costs a browser some 20 ms
OTHERS = "others"  # the group of those that stand alone


@dataclass(frozen=True)
class Chart:
    """One chart: the key it draws and how.

    Args:
        key: key in metrics.jsonl.
        title: title above the chart.
        unit: form of the axis: ``percent``, ``number`` or ``count``.
        floor: whether its axis begins at zero.
        steps: whether a value holds for the whole step that ends at its point.
        log_steps: whether it is always drawn against the logarithm of steps.
        log_axis: whether its own axis is always logarithmic.
        log_choice: whether the page's choice of a logarithmic axis applies.
        note: text below the title.
        parts: keys to stack, each with a name; ``key`` then only names the chart.
        ranks: whether the chart shows the hardware of every rank.
        better: for a figure, the better direction: ``higher`` or ``lower``.
        group: for a further figure, name of the figures that it is drawn with.
        band: keys of the lower and the upper end of an interval around ``key``.
        beside: another key drawn in the same chart, and its name.
    """

    key: str
    title: str
    unit: str = "number"
    floor: bool = True
    steps: bool = False
    log_steps: bool = False
    log_axis: bool = False
    log_choice: bool = False
    note: str = ""
    parts: tuple[tuple[str, str], ...] = ()
    ranks: bool = False
    better: str = ""
    group: str = ""
    band: tuple[str, str] | tuple[()] = ()
    beside: tuple[str, str] | tuple[()] = ()


PHASES = (
    ("compute_seconds", "compute"),
    ("communication_seconds", "exposed communication"),
    ("optimizer_seconds", "optimizer"),
    ("data_seconds", "waiting for data"),
)
BREAKDOWN = Chart(
    "step_seconds",
    "Seconds of a step",
    note="of rank 0: computing, and what no computing hides",
    parts=PHASES,
)
HARDWARE = (
    Chart("gpu_utilization", "GPU utilisation", unit="percent", ranks=True),
    Chart("gpu_memory_bytes", "GPU memory", unit="count", ranks=True, note="bytes in use"),
    Chart("gpu_power_watts", "GPU power", ranks=True, note="watts"),
    Chart("gpu_temperature_celsius", "GPU temperature", floor=False, ranks=True, note="°C"),
    Chart("gpu_sm_clock_mhz", "GPU clock", ranks=True, note="MHz, of the multiprocessors"),
    Chart("gpu_memory_clock_mhz", "GPU memory clock", ranks=True, note="MHz"),
    Chart("nvlink_tx_bytes_per_second", "NVLink sent", unit="count", ranks=True, note="bytes/s"),
    Chart(
        "nvlink_rx_bytes_per_second", "NVLink received", unit="count", ranks=True, note="bytes/s"
    ),
    Chart("host_cpu_utilization", "Host processor", unit="percent", ranks=True, note="all cores"),
    Chart("host_memory_bytes", "Host memory", unit="count", ranks=True, note="bytes in use"),
    Chart(
        "process_memory_bytes", "Memory of a rank", unit="count", ranks=True, note="bytes resident"
    ),
    *(
        Chart(f"{key}", f"Seconds a step, {name}", ranks=True, note="means between two readings")
        for key, name in PHASES
    ),
)

FACTS = (
    Chart("lr", "Learning rate", steps=True, log_choice=True),
    Chart(
        "batch_size",
        "Batch size",
        unit="count",
        steps=True,
        note="samples a step, without the short last step of an epoch",
    ),
    Chart("samples_per_second", "Samples per second", unit="count", note="training, all ranks"),
    Chart("weight_norm", "Weight norm", floor=False, note="‖w‖ over all parameters"),
    Chart(
        "weight_distance",
        "Weight distance",
        log_steps=True,
        note="‖w − w₀‖ against log steps: a straight line is ultra-slow diffusion (Hoffer 2017)",
    ),
    Chart(
        "step_room",
        "Room of a step",
        log_axis=True,
        note="longest multiple of the update that does not raise its batch's loss; below 1: the "
        "rate is too large, 1 to 3: the curvature limits it, above: the noise does",
    ),
    Chart(
        "curvature_times_rate",
        "Curvature × rate",
        note="largest, in the optimizer's coordinates; steps diverge above the dotted line",
        beside=("curvature_bound", "edge of stability"),
    ),
    Chart("clip_factor", "Clip factor", note="1: the gradient passed whole"),
    Chart(
        "nonfinite_steps",
        "Steps not finite",
        unit="count",
        note="so far: loss or gradients were inf or nan",
    ),
    Chart("samples_per_joule", "Samples per joule", note="of the power of all GPUs"),
    Chart("loss_scale", "Loss scale", floor=False),
)


NOISE = Chart(
    "noise_scale",
    "Noise scale",
    unit="count",
    log_axis=True,
    note="samples, with the 95% interval; a batch far below it may grow, one far above is wasted",
    band=("noise_scale_low", "noise_scale_high"),
    beside=("batch_size", "batch size"),
)
BY_OPTIMIZER = tuple(
    replace(
        NOISE,
        key=f"noise_scale_{name}",
        title=f"Noise scale for {name.upper()}",
        band=(f"noise_scale_{name}_low", f"noise_scale_{name}_high"),
    )
    for name in ("lars", "lamb")
)


def charts_for(runs: Sequence[Run]) -> list[Chart]:
    """Return the charts for which some run has points: figures first, hardware last.

    For one run the breakdown of a step is stacked. For several runs each phase has its own chart.
    """
    present = _present(runs)
    measured = {key for run in runs for key in run.hardware}
    facts = {chart.key for chart in FACTS} | {key for key, _ in PHASES}
    if len(runs) == 1:
        phases = [BREAKDOWN] if PHASES[0][0] in present else []
    else:
        named = {key for key, _ in PHASES}
        phases = [Chart(key, title(key), floor=False) for key in present if key in named]
    return [
        *(
            _figure_chart(figure)
            for name, figure in _figures(runs).items()
            if name in present and name not in facts
        ),
        *(_fitted(chart, runs) for chart in FACTS if chart.key in present),
        *_noise(present),
        *phases,
        *(chart for chart in HARDWARE if chart.key in measured),
    ]


def further_charts(runs: Sequence[Run]) -> list[Chart]:
    """Return the charts of all other numbers in metrics, grouped by prefix.

    These are the figures of probes and of further evaluations. A figure such as ``ema_top1`` is
    drawn like the figure that its name ends with (``top1``).
    """
    figures, present = _figures(runs), _present(runs)
    drawn = {*figures, *(chart.key for chart in FACTS), *(key for key, _ in PHASES)}
    drawn |= {chart.beside[0] for chart in FACTS if chart.beside}
    drawn |= {key for chart in _noise(present) for key in (chart.key, *chart.band)}
    known = list(by_name([*figures.values(), TOP1, TOP5]).values())
    groups: dict[str, list[Chart]] = {}
    for key in present:
        if key not in drawn:
            chart = _further(key, known)
            groups.setdefault(chart.group, []).append(chart)
    several = [chart for charts in groups.values() if len(charts) > 1 for chart in charts]
    alone = [replace(charts[0], group=OTHERS) for charts in groups.values() if len(charts) == 1]
    return several + alone


def chart_ids(charts: Iterable[Chart]) -> list[str]:
    """Return an HTML id for each chart: its key, if the key is a valid id.

    Ids must be made unique, since a phase is drawn both for training and for ranks, and keys are
    untrusted text.
    """
    ids: list[str] = []
    for number, chart in enumerate(charts):
        name = f"rank-{chart.key}" if chart.ranks else chart.key
        plain = re.fullmatch(r"(rank-)?\w+", name, re.ASCII) and name not in ids
        ids.append(name if plain else f"chart-{number}")
    return ids


def _fitted(chart: Chart, runs: Sequence[Run]) -> Chart:
    """Return the chart of the weights' distance with its line in words, of a single run."""
    if chart.key != "weight_distance" or len(runs) != 1:
        return chart
    series = runs[0].series["train"].get(chart.key)
    fit = log_fit(series["step"], series["value"]) if series else None
    return replace(chart, note=f"{chart.note}; here {fit.text()}") if fit else chart


def _noise(present: Sequence[str]) -> list[Chart]:
    """Return the charts of noise scales that come with an interval."""
    return [chart for chart in (NOISE, *BY_OPTIMIZER) if chart.band and chart.band[0] in present]


def _present(runs: Sequence[Run]) -> list[str]:
    """Return the keys that some run has points of, in order."""
    return list({key: None for run in runs for split in run.series.values() for key in split})


def _figures(runs: Sequence[Run]) -> dict[str, Figure]:
    """Return the figures of all runs by name: headlines, the loss, then others.

    One is in percent where all runs read it so.
    """
    every = [list(run.judged.figures.values()) for run in runs]
    ordered = [
        *(run.judged.headline for run in runs),
        *(run.judged.figures["loss"] for run in runs),
        *(figure for figures in every for figure in figures),
    ]
    percent = {
        name: all(figure.percent for figure in ordered if figure.name == name)
        for name in {figure.name for figure in ordered}
    }
    return {
        name: replace(figure, percent=percent[name]) for name, figure in by_name(ordered).items()
    }


def _figure_chart(figure: Figure) -> Chart:
    lower = figure.better == "lower"
    return Chart(
        figure.name,
        figure.title,
        unit="percent" if figure.percent else "number",
        floor=lower,
        log_choice=lower,
        better=figure.better,
    )


def _further(key: str, figures: Iterable[Figure]) -> Chart:
    """Return the chart of a key: as the figure that it ends on, the longest of them, if any."""
    ends = [figure for figure in figures if f"_{key}".endswith(f"_{figure.name}")]
    if not ends:
        return Chart(key, title(key), floor=False, group=re.split(r"[_./]", key, maxsplit=1)[0])
    figure = max(ends, key=lambda figure: len(figure.name))
    prefix = key.removesuffix(figure.name).rstrip("_")
    named = title(f"{prefix} {figure.label}") if prefix else figure.title
    return replace(_figure_chart(figure), key=key, title=named, group=prefix or key)
