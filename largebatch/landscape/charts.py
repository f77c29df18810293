"""The page of a landscape: lines, contours and surfaces."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from largebatch.landscape.points import number
from largebatch.record import BenchmarkRecord
from largebatch.report.figures import Figure
from largebatch.report.record_page import GREY, Tile, blank_figure, write_page

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as Drawing

WIDE = 20.0  # from this ratio on, losses are drawn by their logarithm
COLOURS = "Viridis"
NAMES = {"line": "line", "bezier": "Bezier curve", "polychain": "chain of lines"}

Point = dict[str, Any]


def write_landscape(path: Path, record: BenchmarkRecord) -> None:
    """Write the page of a landscape.

    Raises:
        UserError: ``path`` cannot be written.
    """
    names = [run["name"] for run in record.details["runs"]]
    title = f"The loss around {names[0]}"
    if len(names) == 2:
        title = f"The loss between {names[0]} and {names[1]}"
    write_page(path, record, list(_charts(record.details)), title, _tiles(record))


def _tiles(record: BenchmarkRecord) -> list[Tile]:
    headline = Figure(**record.details["headline"])
    tiles = []
    for run in record.details["runs"]:
        told = headline.name != "loss" and run[headline.name] is not None
        lines = [f"{headline.label} {headline.text(run[headline.name])}"] if told else []
        tiles.append(Tile(f"loss of {run['name']}", _text(run["loss"]), lines))
    for row in record.rows:
        if "barrier" in row:
            where = [f"highest at t = {row['highest at']}"]
            tiles.append(Tile(f"barrier, {NAMES[row['picture']]}", _text(row["barrier"]), where))
    return tiles


def _charts(details: dict[str, Any]) -> Iterator[tuple[str, str, Drawing]]:
    pictures, headline = details["pictures"], Figure(**details["headline"])
    if len(details["runs"]) == 2:
        yield "Loss along the paths", "t = 0: the first run, 1: the second", _paths(pictures)
        if headline.name != "loss":
            figure = _paths(pictures, headline.name, headline.percent)
            yield f"{headline.title} along the paths", "at the same points", figure
        return
    if "line" in pictures:
        note = "at multiples of a filter-normalised direction; 0: the run"
        yield "Loss along a line", note, _line(pictures["line"])
        if headline.name != "loss":
            figure = _line(pictures["line"], headline.name, headline.percent)
            yield f"{headline.title} along the line", "at the same points", figure
    if "plane" in pictures:
        wide = _wide([number(point["loss"]) for point in pictures["plane"]])
        note = "lines of equal loss, by its logarithm" if wide else "lines of equal loss"
        yield (
            "Loss in a plane",
            f"two directions; {note}; the cross: the run",
            _contour(pictures["plane"]),
        )
        yield "The plane as a surface", "the same points", _surface(pictures["plane"])
    if "smooth" in pictures:
        note = (
            "by Gaussian noise on the weights, of so many lengths of a filter; one standard error"
        )
        yield "Smoothed loss along the line", note, _smooth(pictures["smooth"])


def _line(points: Sequence[Point], key: str = "loss", percent: bool = False) -> Drawing:
    from plotly.graph_objects import Scatter

    figure = blank_figure("multiple of the direction", key, percent)
    values = [_finite(point[key]) for point in points]
    figure.add_trace(Scatter(x=_side(points, 0), y=values, name=key, mode="lines"))
    _scale(figure, values, key)
    return figure


def _paths(pictures: dict[str, list[Point]], key: str = "loss", percent: bool = False) -> Drawing:
    from plotly.graph_objects import Scatter

    figure, every = blank_figure("t", key, percent), []
    for name, points in pictures.items():
        values = [_finite(point[key]) for point in points]
        every += values
        figure.add_trace(Scatter(x=_side(points, 0), y=values, name=NAMES[name], mode="lines"))
    _scale(figure, every, key)
    return figure


def _smooth(points: Sequence[Point]) -> Drawing:
    from plotly.graph_objects import Scatter

    figure = blank_figure("multiple of the direction", "loss")
    for width in dict.fromkeys(point["at"][0] for point in points):
        of = [point for point in points if point["at"][0] == width]
        errors = [point.get("error") or 0.0 for point in of]
        figure.add_trace(
            Scatter(
                x=_side(of, 1),
                y=[_finite(point["loss"]) for point in of],
                error_y={"type": "data", "array": errors, "thickness": 1} if width else None,
                name=f"width {width:g}" if width else "the loss",
                mode="lines",
            )
        )
    _scale(figure, [_finite(point["loss"]) for point in points], "loss")
    return figure


def _contour(points: Sequence[Point]) -> Drawing:
    from plotly.graph_objects import Contour, Scatter

    x, y, height, name = _grid(points)
    figure = blank_figure("first direction", "second direction")
    figure.add_trace(
        Contour(
            x=x,
            y=y,
            z=height,
            customdata=_rows(points, len(x)),
            colorscale=COLOURS,
            ncontours=24,
            colorbar={"thickness": 10, "title": {"text": name}},
            hovertemplate="%{x:.3g}, %{y:.3g}: loss %{customdata:.4g}<extra></extra>",
        )
    )
    figure.add_trace(
        Scatter(
            x=[0.0],
            y=[0.0],
            mode="markers",
            marker={"symbol": "cross-thin", "size": 12, "line": {"width": 2, "color": "white"}},
            hoverinfo="skip",
            showlegend=False,
        )
    )
    figure.update_layout(hovermode="closest", height=400)
    figure.update_yaxes(rangemode="normal")
    return figure


def _surface(points: Sequence[Point]) -> Drawing:
    from plotly.graph_objects import Surface

    x, y, height, name = _grid(points)
    figure = blank_figure("", "")
    surface = Surface(
        x=x,
        y=y,
        z=height,
        customdata=_rows(points, len(x)),
        colorscale=COLOURS,
        showscale=False,
        hovertemplate="%{x:.3g}, %{y:.3g}: loss %{customdata:.4g}<extra></extra>",
    )
    figure.add_trace(surface)
    axis = {"color": GREY, "gridcolor": "rgba(138,143,152,.4)", "showbackground": False}
    figure.update_layout(
        height=400,
        margin={"l": 0, "r": 0, "t": 0, "b": 0},
        scene={
            "camera": {"eye": {"x": 1.5, "y": 1.5, "z": 1.0}},
            "xaxis": {**axis, "title": {"text": "first"}},
            "yaxis": {**axis, "title": {"text": "second"}},
            "zaxis": {**axis, "title": {"text": name}},
        },
    )
    return figure


def _grid(points: Sequence[Point]) -> tuple[list[float], list[float], list[list[Any]], str]:
    """Return the plane's sides, its heights by row of the second direction, and their name."""
    side = list(dict.fromkeys(_side(points, 0)))
    wide = _wide([number(point["loss"]) for point in points])
    rows = [
        [None if loss is None else math.log10(loss) if wide else loss for loss in row]
        for row in _rows(points, len(side))
    ]
    return side, side, rows, "log10 loss" if wide else "loss"


def _rows(points: Sequence[Point], side: int) -> list[list[Any]]:
    """Return losses by row: the first direction runs along a row."""
    losses = [_finite(point["loss"]) for point in points]
    return [losses[number::side] for number in range(side)]


def _side(points: Sequence[Point], axis: int) -> list[float]:
    return [point["at"][axis] for point in points]


def _wide(losses: Sequence[float | None]) -> bool:
    known = [loss for loss in losses if loss is not None and math.isfinite(loss)]
    return bool(known) and min(known) > 0 and max(known) > WIDE * min(known)


def _scale(figure: Drawing, values: Sequence[float | None], key: str) -> None:
    if key == "loss" and _wide(values):
        figure.update_yaxes(type="log", rangemode="normal")


def _finite(value: Any) -> float | None:
    found = number(value)
    return found if math.isfinite(found) else None


def _text(value: Any) -> str:
    return f"{number(value):.4g}"
