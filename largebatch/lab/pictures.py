"""Pictures of experiments, in the report's style: each a function that draws when it is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from largebatch.lab.experiment import Drawing
from largebatch.report.log_fit import straight_line

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

COLOURS = ("#4c78a8", "#e45756", "#54a24b", "#b279a2", "#f58518", "#72b7b2", "#9d755d", "#8a8f98")


@dataclass(frozen=True)
class Series:
    """One curve.

    Attributes:
        name: in the legend. x, y: of its points.
        low, high: ends of the band around it, such as the range over seeds.
        mode: ``lines``, ``markers`` or ``lines+markers``. dashed: such as a theory's line.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    mode: str = "lines"
    dashed: bool = False


def over_seeds(
    name: str, x: Sequence[float], runs: Sequence[Sequence[float]], mode: str = "lines"
) -> Series:
    """Return the mean of several runs at the same points, with their range as the band."""
    columns = list(zip(*runs, strict=True))
    mean = [sum(column) / len(column) for column in columns]
    return Series(name, x, mean, [min(c) for c in columns], [max(c) for c in columns], mode)


def lines(
    x: str,
    y: str,
    series: Sequence[Series],
    log: str = "",
    marks: Mapping[str, float] = {},
    levels: Mapping[str, float] = {},
    percent: bool = False,
) -> Drawing:
    """Draw curves with their bands.

    Args:
        x, y: the axes' names.
        log: the axes that are logarithmic: "", "x", "y" or "xy".
        marks, levels: dotted upright and level lines, by what is written at them.
        percent: whether y is a share.
    """

    def draw() -> Figure:
        from plotly.graph_objects import Scatter

        figure = _blank(x, y, log, percent)
        for number, each in enumerate(series):
            colour = COLOURS[number % len(COLOURS)]
            if each.low is not None and each.high is not None:
                red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
                figure.add_trace(
                    Scatter(
                        x=[*each.x, *reversed(each.x)],
                        y=[*each.high, *reversed(each.low)],
                        fill="toself",
                        fillcolor=f"rgba({red},{green},{blue},.2)",
                        line={"width": 0},
                        hoverinfo="skip",
                        showlegend=False,
                        mode="lines",
                    )
                )
            figure.add_trace(
                Scatter(
                    x=list(each.x),
                    y=list(each.y),
                    name=each.name,
                    mode=each.mode,
                    line={"color": colour, "dash": "dash" if each.dashed else "solid"},
                    marker={"color": colour},
                )
            )
        for words, place in marks.items():
            figure.add_vline(x=place, line={"dash": "dot"}, annotation={"text": words})
        for words, place in levels.items():
            figure.add_hline(y=place, line={"dash": "dot"}, annotation={"text": words})
        return figure

    return draw


def heat(
    x: str,
    y: str,
    columns: Sequence[float | str],
    rows: Sequence[float | str],
    values: Sequence[Sequence[float]],
    log: str = "",
    unit: str = "",
) -> Drawing:
    """Draw a heat map: ``values`` has a row of numbers for each of ``rows``, None for a gap."""

    def draw() -> Figure:
        from plotly.graph_objects import Heatmap

        figure = _blank(x, y, log)
        figure.update_layout(hovermode="closest")
        figure.add_trace(
            Heatmap(
                x=list(columns),
                y=list(rows),
                z=[list(row) for row in values],
                colorscale="Viridis",
                colorbar={"title": {"text": unit}},
            )
        )
        return figure

    return draw


def scatter(x: str, y: str, series: Sequence[Series], log: str = "", fit: bool = True) -> Drawing:
    """Draw points, and through each series of three or more the straight line of its axes."""
    from math import exp
    from math import log as ln

    drawn: list[Series] = []
    for each in series:
        drawn.append(Series(each.name, each.x, each.y, mode="markers"))
        if not fit or len(each.x) < 3:
            continue
        across = [ln(a) if "x" in log else a for a in each.x]
        up = [ln(b) if "y" in log else b for b in each.y]
        slope, intercept, error, _ = straight_line(across, up)
        ends = (min(across), max(across))
        drawn.append(
            Series(
                f"slope {slope:.3g} ± {error:.1g}",
                [exp(end) if "x" in log else end for end in ends],
                [exp(v) if "y" in log else v for v in (intercept + slope * end for end in ends)],
                dashed=True,
            )
        )
    return lines(x, y, drawn, log)


def _blank(x: str, y: str, log: str, percent: bool = False) -> Figure:
    from largebatch.report.record_page import blank_figure

    figure = blank_figure(x, y, percent)
    figure.update_yaxes(rangemode="normal")
    if "x" in log:
        figure.update_xaxes(type="log")
    if "y" in log:
        figure.update_yaxes(type="log")
    return figure
