"""The page itself: one HTML file that opens offline and asks nothing of any other address."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from largebatch import __version__
from largebatch._errors import UserError
from largebatch.record import write_atomically
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
    """

    key: str
    title: str
    unit: str = "number"
    floor: bool = True
    steps: bool = False
    log_steps: bool = False
    log_choice: bool = False
    note: str = ""


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
)


def write_report(runs: Sequence[str | Path], output: str | Path) -> None:
    """Write one self-contained page about ``runs`` to ``output``.

    Raises:
        UserError: no runs, a run that is absent or damaged, or ``output`` cannot be written.
    """
    if not runs:
        raise UserError("report: name at least one run directory")
    page = render([read_run(path) for path in runs])
    try:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(Path(output), page)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror})") from None


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
            }
            for name, run in zip(names, runs, strict=True)
        ],
        "charts": [asdict(chart) for chart in charts],
    }
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html.j2").render(
        title=names[0] if len(runs) == 1 else f"{len(runs)} runs",
        names=names,
        runs=runs,
        charts=charts,
        differing=differing_keys(runs),
        version=__version__,
        date=(now or datetime.now()).strftime("%Y-%m-%d %H:%M"),
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup((HERE / "page.js").read_text(encoding="utf-8")),
        plotly=Markup(plotly_without_addresses()),
        data=Markup(json_for_html(data)),
    )


def charts_for(runs: Sequence[Run]) -> list[Chart]:
    """Return the charts that some run has points for: the known ones first, then any other key."""
    present = {key: None for run in runs for split in run.series.values() for key in split}
    known = {chart.key for chart in CHARTS}
    others = [
        Chart(key, key.replace("_", " ").capitalize(), floor=False)
        for key in present
        if key not in known
    ]
    return [chart for chart in CHARTS if chart.key in present] + others


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
    text = json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _distinct(names: Sequence[str]) -> list[str]:
    """Number names that occur more than once."""
    return [
        name if names.count(name) == 1 else f"{name} ({names[: index + 1].count(name)})"
        for index, name in enumerate(names)
    ]
