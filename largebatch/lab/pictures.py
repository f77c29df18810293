"""Charts of experiments, in the report's style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log10
from math import log as ln
from typing import TYPE_CHECKING

from largebatch.lab.experiment import Drawing
from largebatch.report.log_fit import determines_line, straight_line
from largebatch.report.record_page import GREY, blank_figure

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

COLOURS = ("#4c78a8", "#e45756", "#54a24b", "#b279a2", "#f58518", "#72b7b2", "#9d755d", "#8a8f98")


@dataclass(frozen=True)
class Series:
    """One curve; ``low`` and ``high`` are the band around it; a theory's line is dashed."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    mode: str = "lines"  # or markers, or lines+markers
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
        x, y: names of the axes. log: the logarithmic ones: "", "x", "y" or "xy".
        marks, levels: dotted vertical and horizontal lines, by label. percent: y is a share.
    """

    def draw() -> Figure:
        from plotly.graph_objects import Scatter

        figure = _blank(x, y, log, percent)
        for number, each in enumerate(series):
            colour = COLOURS[number % len(COLOURS)]
            if each.low is not None and each.high is not None:
                around = {"x": [*each.x, *reversed(each.x)], "y": [*each.high, *reversed(each.low)]}
                look = {"fill": "toself", "opacity": 0.2, "mode": "none", "fillcolor": colour}
                figure.add_trace(Scatter(**around, **look, hoverinfo="skip", showlegend=False))
            line = {"color": colour, "dash": "dash" if each.dashed else "solid"}
            points = {"x": list(each.x), "y": list(each.y), "name": each.name, "mode": each.mode}
            figure.add_trace(Scatter(**points, line=line, marker={"color": colour}))
        line = {"dash": "dot", "color": GREY}
        for words, place in marks.items():
            at = log10(place) if "x" in log else place  # which a line does by itself
            figure.add_vline(x=place, line=line)
            figure.add_annotation(text=words, x=at, y=1, yref="paper", showarrow=False)
        for words, place in levels.items():
            at = log10(place) if "y" in log else place
            figure.add_hline(y=place, line=line)
            figure.add_annotation(text=words, y=at, x=1, xref="paper", showarrow=False)
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
        z = [list(row) for row in values]
        bar = {"title": {"text": unit}}
        figure.add_trace(Heatmap(x=list(columns), y=list(rows), z=z, colorbar=bar))
        return figure

    return draw


def scatter(x: str, y: str, series: Sequence[Series], log: str = "", fit: bool = True) -> Drawing:
    """Draw points, and the straight line of its axes through each series of three or more.

    There is no line where all are above one place.
    """
    drawn = [Series(each.name, each.x, each.y, mode="markers") for each in series]
    for each in series:
        if not fit or not determines_line(each.x):
            continue
        across = [ln(a) if "x" in log else a for a in each.x]
        up = [ln(b) if "y" in log else b for b in each.y]
        slope, intercept, error, _ = straight_line(across, up)
        ends = (min(across), max(across))
        at = [exp(end) if "x" in log else end for end in ends]
        line = [intercept + slope * end for end in ends]
        line = [exp(v) for v in line] if "y" in log else line
        drawn.append(Series(f"slope {slope:.3g} ± {error:.1g}", at, line, dashed=True))
    return lines(x, y, drawn, log)


def _blank(x: str, y: str, log: str, percent: bool = False) -> Figure:
    figure = blank_figure(x, y, percent)
    figure.update_yaxes(rangemode="normal")
    if "x" in log:
        figure.update_xaxes(type="log")
    if "y" in log:
        figure.update_yaxes(type="log")
    return figure
