"""Write the record of a benchmark or study as one HTML file that opens offline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from largebatch import __version__
from largebatch._errors import UserError
from largebatch.record import BenchmarkRecord, write_atomically
from largebatch.report.page import HERE, plotly_without_addresses

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

GREY = "#8a8f98"
LONG = 32  # letters of a text that may take several lines


@dataclass(frozen=True)
class Tile:
    """A card at the top of a page: a name, a value, and a few lines of explanation."""

    name: str
    value: str
    lines: Sequence[str] = ()


def write_page(
    output: str | Path,
    record: BenchmarkRecord,
    charts: Sequence[tuple[str, str, Figure]],
    title: str | None = None,
    tiles: Sequence[Tile] = (),
    lead: str = "",
) -> None:
    """Write the record's charts, table, formulas and notes to ``output``.

    Args:
        charts: (title, note, figure) for each chart.
        title: title of the page; None: the benchmark's name.
        tiles: cards that a reader should see first.
        lead: a paragraph above the cards.

    Raises:
        UserError: ``output`` cannot be written.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("record_page.html.j2").render(
        title=title or f"bench {record.name}",
        columns=_columns(record.rows),
        rows=record.rows,
        tiles=tiles,
        lead=lead,
        charts=[(title, note, Markup(_element(figure))) for title, note, figure in charts],
        formula=record.formula,
        notes=record.notes,
        environment=record.environment,
        version=__version__,
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        plotly=Markup(plotly_without_addresses()),
    )
    try:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(Path(output), page)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror})") from None


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return the kind of each column: words if a value is long, else number (on the right)."""
    kinds: dict[str, str] = {}
    for row in rows:
        for name, value in row.items():
            long = isinstance(value, str) and len(value) > LONG
            kinds[name] = "words" if long or kinds.get(name) == "words" else "number"
    return kinds


def lines(
    rows: Sequence[dict[str, Any]], x: str, y: str, by: Sequence[str], percent: bool = False
) -> Figure:
    """Draw ``y`` against ``x``, a line for each value of the keys ``by``, with p5 to p95 if known.

    Rows that lack ``y`` are left out.
    """
    from plotly.graph_objects import Scatter

    figure = blank_figure(x, "" if percent else y, percent)
    figure.update_xaxes(tickvals=sorted({row[x] for row in rows}))
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if y in row:
            groups.setdefault(tuple(row[key] for key in by), []).append(row)
    for key, members in groups.items():
        members = sorted(members, key=lambda row: float(row[x]))
        bars = None
        if y == "images/s":
            bars = {
                "type": "data",
                "symmetric": False,
                "array": [row["p95"] - row[y] for row in members],
                "arrayminus": [row[y] - row["p5"] for row in members],
                "thickness": 1,
            }
        name = ", ".join(
            str(v) if isinstance(v, str) else f"{k} {v}" for k, v in zip(by, key, strict=True)
        )
        figure.add_trace(
            Scatter(
                x=[row[x] for row in members],
                y=[row[y] for row in members],
                error_y=bars,
                name=name,
                mode="lines+markers",
            )
        )
    return figure


def bars(
    rows: Sequence[dict[str, Any]], x: str, parts: Sequence[str], stacked: bool = True
) -> Figure:
    """Draw a bar for each row, named by its ``x``, with ``parts`` stacked or side by side."""
    from plotly.graph_objects import Bar

    figure = blank_figure(x, "", False)
    figure.update_layout(
        barmode="stack" if stacked else "group",
        hovermode="y unified",
        height=140 + len(rows) * (22 if stacked else 18 * len(parts)),
    )
    figure.update_xaxes(title=None, rangemode="tozero")
    figure.update_yaxes(autorange="reversed")
    names = [row[x] for row in rows]
    for part in parts:
        values = [row.get(part) for row in rows]
        figure.add_trace(Bar(y=names, x=values, name=part, orientation="h"))
    return figure


def blank_figure(x: str, y: str, percent: bool = False) -> Figure:
    """Return an empty figure with named axes, in the report's style."""
    from plotly.graph_objects import Figure

    figure = Figure()
    axis = {"gridcolor": "rgba(138,143,152,.25)", "zeroline": False}
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": GREY, "size": 12},
        margin={"l": 60, "r": 10, "t": 10, "b": 50},
        height=320,
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        hovermode="x unified",
        hoverlabel={"font": {"color": "#222"}},
        xaxis={**axis, "title": {"text": x}, "automargin": True},
        yaxis={**axis, "title": {"text": y}, "rangemode": "tozero", "automargin": True},
    )
    if percent:
        figure.update_yaxes(tickformat=".0%")
    return figure


def _element(figure: Figure) -> str:
    config = {"displaylogo": False, "responsive": True, "displayModeBar": False}
    html: str = figure.to_html(full_html=False, include_plotlyjs=False, config=config)
    return html
