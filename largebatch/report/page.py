"""Write the page of a report: one HTML file that opens offline and loads nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from largebatch import __version__
from largebatch._errors import UserError
from largebatch.record import json_text, write_atomically
from largebatch.report.charts import MOST_FURTHER, Chart, chart_ids, charts_for, further_charts
from largebatch.report.figures import words
from largebatch.report.runs import Run, read_run
from largebatch.report.table import TILES, WORDS, figure_columns, lacking, table

HERE = Path(__file__).parent


def write_report(runs: Sequence[str | Path], output: str | Path) -> list[str]:
    """Write one self-contained page about ``runs`` to ``output``.

    Returns:
        Messages about omitted parts of the runs, which are also on the page.

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
    columns = table(runs)
    further = further_charts(runs)
    drawn = [*charts_for(runs), *further[:MOST_FURTHER]]
    charts = list(zip(drawn, chart_ids(drawn), strict=True))
    data = {
        "runs": [
            {
                "name": name,
                "finished": run.finished,
                "figures": {label: cells[place] for label, cells in columns.items()},
                "series": run.series,
                "layers": run.layers,
                "noise": run.noise,
                "spectrum": run.spectrum,
                "hardware": run.hardware,
            }
            for place, (name, run) in enumerate(zip(names, runs, strict=True))
        ],
        "charts": [{**asdict(chart), "id": element} for chart, element in charts],
    }
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html.j2").render(
        title=names[0] if len(runs) == 1 else f"{len(runs)} runs",
        names=names,
        runs=runs,
        columns=columns,
        words=WORDS,
        tiles=[*figure_columns(runs), *TILES],
        lacking=[
            (name, missing) for name, missing in zip(names, lacking(runs), strict=True) if missing
        ],
        charts=[pair for pair in charts if not pair[0].group],
        further=_groups([pair for pair in charts if pair[0].group]),
        lower=[words(chart.key) for chart in drawn if chart.better == "lower" and not chart.group]
        or ["loss"],
        not_drawn=[chart.title for chart in further[MOST_FURTHER:]],
        differing=differing_keys(runs),
        version=__version__,
        date=(now or datetime.now()).strftime("%Y-%m-%d %H:%M"),
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup((HERE / "page.js").read_text(encoding="utf-8")),
        plotly=Markup(plotly_without_addresses()),
        data=Markup(json_for_html(data)),
    )


def differing_keys(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Return the config keys in which runs differ (except paths), with each run's value."""
    keys = {key: None for run in runs for key in run.keys if key != "run.dir"}
    rows = [(key, [run.keys.get(key, "–") for run in runs]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def plotly_without_addresses() -> str:
    """Return plotly.js with all outside addresses (map styles, links) made invalid.

    The page's content security policy forbids requests anyway. Names of XML vocabularies are kept.
    """
    from plotly.offline import get_plotlyjs

    return re.sub(r"https?://(?!www\.w3\.org/)", "about:invalid#", get_plotlyjs())


def json_for_html(data: Any) -> str:
    """Return JSON that cannot close the surrounding script element."""
    text = json_text(data)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _groups(further: Sequence[tuple[Chart, str]]) -> dict[str, list[tuple[Chart, str]]]:
    """Return charts, each with its element's name, by their group."""
    groups: dict[str, list[tuple[Chart, str]]] = {}
    for chart, element in further:
        groups.setdefault(words(chart.group), []).append((chart, element))
    return groups


def _distinct(names: Sequence[str]) -> list[str]:
    """Number names that occur more than once."""
    return [
        name if names.count(name) == 1 else f"{name} ({names[: index + 1].count(name)})"
        for index, name in enumerate(names)
    ]
