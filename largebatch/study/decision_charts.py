"""The charts of `study decision`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

COLOURS = ("#1f6fb4", "#c8500a", "#00805f", "#8a4fa8", "#a06a00", "#c2397f", "#0b7f92", "#5b6470")
POINTS = ("star", "diamond", "circle")


def draw_decision(details: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield (title, note, plotly figure): hours, cost and energy against batch, and the front."""
    cost = "GPU-hours" if details["price"] is None else "cost"
    note = "a line for each number of GPUs; dashed: not measured"
    yield "Hours against batch", note, _against_batch(details, "hours", "hours")
    yield f"{cost[0].upper()}{cost[1:]} against batch", note, _against_batch(details, "cost", cost)
    if details["watts"] is not None:
        figure = _against_batch(details, "kilowatt_hours", "kWh")
        yield "Energy against batch", note, figure
    yield (
        "Hours against cost",
        "the front: nothing is both faster and cheaper",
        _front(details, cost),
    )


def _against_batch(details: dict[str, Any], key: str, name: str) -> Any:
    from plotly.graph_objects import Scatter

    from largebatch.report.record_page import blank_figure

    figure = blank_figure("batch", name)
    figure.update_layout(hovermode="closest")
    figure.update_xaxes(type="log")
    figure.update_yaxes(type="log", rangemode="normal")
    for index, ranks in enumerate(sorted({each["ranks"] for each in details["choices"]})):
        line = [each for each in details["choices"] if each["ranks"] == ranks]
        colour = COLOURS[index % len(COLOURS)]
        label = f"{ranks} GPU{'s' * (ranks > 1)}"
        stretches = list(_stretches(line))
        shown = next((n for n, (_, dashed) in enumerate(stretches) if not dashed), 0)
        for number, (members, dashed) in enumerate(stretches):
            figure.add_trace(
                Scatter(
                    x=[each["batch"] for each in members],
                    y=[each[key] for each in members],
                    name=label,
                    legendgroup=label,
                    showlegend=number == shown,
                    mode="lines",
                    line={"color": colour, "dash": "dash" if dashed else "solid"},
                    hovertemplate=f"batch %{{x:,}}: %{{y:,.4~g}} {name}<extra>{label}</extra>",
                )
            )
    _mark(figure, details, "batch", key)
    return figure


def _front(details: dict[str, Any], cost: str) -> Any:
    from plotly.graph_objects import Scatter

    from largebatch.report.record_page import blank_figure

    figure = blank_figure(cost, "hours")
    figure.update_layout(hovermode="closest")
    figure.update_xaxes(type="log")
    figure.update_yaxes(type="log", rangemode="normal")
    front = details["front"]
    figure.add_trace(
        Scatter(
            x=[each["cost"] for each in front],
            y=[each["hours"] for each in front],
            text=[f"batch {each['batch']:,} on {each['ranks']} GPUs" for each in front],
            hovertemplate="%{text}<extra></extra>",
            name="front",
            mode="lines+markers",
            line={"color": COLOURS[0]},
            marker={
                "symbol": ["circle-open" if each["extrapolated"] else "circle" for each in front]
            },
        )
    )
    _mark(figure, details, "cost", "hours")
    return figure


def _mark(figure: Any, details: dict[str, Any], x: str, y: str) -> None:
    from plotly.graph_objects import Scatter

    for index, (name, point) in enumerate(details["points"].items()):
        figure.add_trace(
            Scatter(
                x=[point[x]],
                y=[point[y]],
                name=name,
                mode="markers",
                marker={
                    "size": 13 - 2 * index,
                    "symbol": POINTS[index],
                    "color": COLOURS[5 + index],
                    "line": {"width": 1, "color": "white"},
                },
            )
        )


def _stretches(line: list[dict[str, Any]]) -> Iterator[tuple[list[dict[str, Any]], bool]]:
    """Cut a curve where it leaves what was measured; neighbours share a point."""
    part: list[dict[str, Any]] = line[:1]
    dashed = False
    for before, each in pairwise(line):
        beyond = before["extrapolated"] or each["extrapolated"]
        if len(part) > 1 and beyond != dashed:
            yield part, dashed
            part = [before]
        dashed = beyond
        part.append(each)
    if part:
        yield part, dashed
