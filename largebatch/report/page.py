"""The page itself: one HTML file that opens offline and asks nothing of any other address."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from largebatch import __version__
from largebatch._errors import UserError
from largebatch.record import json_text, write_atomically
from largebatch.report.runs import Run, read_run

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Chart:
    """One chart: the key it draws and how.

    Args:
        key: of metrics.jsonl.
        title: above the chart.
        unit: how its axis is written: ``percent``, ``number`` or ``count``.
        floor: whether its axis begins at zero.
        steps: whether a value holds for the whole step that ends at its point.
        log_steps: whether it is drawn against the logarithm of steps, whatever the page shows.
        log_choice: whether the page's choice of a logarithmic axis holds for it.
        note: below the title.
        parts: keys, each with its name, that are stacked; ``key`` then only names the chart.
        ranks: whether it draws the hardware of every rank.
    """

    key: str
    title: str
    unit: str = "number"
    floor: bool = True
    steps: bool = False
    log_steps: bool = False
    log_choice: bool = False
    note: str = ""
    parts: tuple[tuple[str, str], ...] = ()
    ranks: bool = False


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

CHARTS = (
    Chart("top1", "Top-1 accuracy", unit="percent", floor=False),
    Chart("loss", "Loss", log_choice=True),
    Chart("top5", "Top-5 accuracy", unit="percent", floor=False),
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
    Chart("clip_factor", "Clip factor", note="1: the gradient passed whole"),
    Chart(
        "nonfinite_steps",
        "Steps not finite",
        unit="count",
        note="so far: loss or gradients were inf or nan",
    ),
    Chart("samples_per_joule", "Samples per joule", note="of the power of all GPUs"),
)


def write_report(runs: Sequence[str | Path], output: str | Path) -> list[str]:
    """Write one self-contained page about ``runs`` to ``output``.

    Returns:
        what the page leaves out of them; it says so itself.

    Raises:
        UserError: no runs, a run that is absent or damaged, or ``output`` cannot be written.
    """
    if not runs:
        raise UserError("report: name at least one run directory")
    found = [read_run(path) for path in runs]
    # Names that are no text (half a surrogate pair, a folder's bytes) must not stop the page.
    page = render(found).encode("utf-8", "replace")
    try:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(Path(output), page)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror})") from None
    return [f"{run.name}: {remark}" for run in found for remark in run.remarks]


def render(runs: Sequence[Run], now: datetime | None = None) -> str:
    """Return the page as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    names = _distinct([run.name for run in runs])
    charts = charts_for(runs)
    data = {
        "runs": [
            {
                "name": name,
                "finished": run.finished,
                "figures": run.row,
                "series": run.series,
                "layers": run.layers,
                "hardware": run.hardware,
            }
            for name, run in zip(names, runs, strict=True)
        ],
        "charts": [{**asdict(chart), "id": chart_id(chart)} for chart in charts],
    }
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html.j2").render(
        title=names[0] if len(runs) == 1 else f"{len(runs)} runs",
        names=names,
        runs=runs,
        charts=[(chart, chart_id(chart)) for chart in charts],
        differing=differing_keys(runs),
        version=__version__,
        date=(now or datetime.now()).strftime("%Y-%m-%d %H:%M"),
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup((HERE / "page.js").read_text(encoding="utf-8")),
        plotly=Markup(plotly_without_addresses()),
        data=Markup(json_for_html(data)),
    )


def charts_for(runs: Sequence[Run]) -> list[Chart]:
    """Return the charts that some run has points for: the known ones first, then any other key.

    The breakdown of a step is stacked for one run; of several, each phase has a chart. Hardware
    comes last.
    """
    present = {key: None for run in runs for split in run.series.values() for key in split}
    measured = {key for run in runs for key in run.hardware}
    known = {chart.key for chart in CHARTS}
    breakdown = [BREAKDOWN] if len(runs) == 1 and PHASES[0][0] in present else []
    if breakdown:
        known |= {key for key, _ in PHASES}
    others = [
        Chart(key, key.replace("_", " ").capitalize(), floor=False)
        for key in present
        if key not in known
    ]
    return [
        *(chart for chart in CHARTS if chart.key in present),
        *breakdown,
        *others,
        *(chart for chart in HARDWARE if chart.key in measured),
    ]


def chart_id(chart: Chart) -> str:
    """Return the name of the chart's element: a phase is drawn for training and for ranks."""
    return f"rank-{chart.key}" if chart.ranks else chart.key


def differing_keys(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Return the config keys in which runs differ, their place aside, with each run's value."""
    keys = {key: None for run in runs for key in run.keys if key != "run.dir"}
    rows = [(key, [run.keys.get(key, "–") for run in runs]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def plotly_without_addresses() -> str:
    """Return plotly.js, whose map styles and links name outside addresses, with those made invalid.

    The page's content security policy forbids requests anyway. Names of XML vocabularies stay.
    """
    from plotly.offline import get_plotlyjs

    return re.sub(r"https?://(?!www\.w3\.org/)", "about:invalid#", get_plotlyjs())


def json_for_html(data: Any) -> str:
    """Return JSON that cannot end the script element it stands in."""
    text = json_text(data)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _distinct(names: Sequence[str]) -> list[str]:
    """Number names that occur more than once."""
    return [
        name if names.count(name) == 1 else f"{name} ({names[: index + 1].count(name)})"
        for index, name in enumerate(names)
    ]
