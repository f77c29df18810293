"""The charts of `study critical-batch`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from largebatch.study.hyperbola import OVERHEAD
from largebatch.study.overhead import MOST


def draw_critical(details: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield (title, note, plotly figure) of overheads, B20 along the run, and curves."""
    from plotly.graph_objects import Scatter

    from largebatch.report.record_page import blank_figure

    points = details["points"]
    figure = blank_figure("batch", "", percent=True)
    figure.update_xaxes(type="log")
    figure.update_yaxes(rangemode="normal")
    for point in points:
        shown = [
            (batch, mean, bound)
            for batch, mean, bound in zip(
                point["batches"], point["overheads"], point["bounds"], strict=True
            )
            if mean is not None and mean <= MOST
        ]
        batches, means, bounds = ([each[i] for each in shown] for i in range(3))
        upper = [0.0, *((bound or mean) - mean for mean, bound in zip(means, bounds, strict=True))]
        figure.add_trace(
            Scatter(
                x=[point["own"], *batches],
                y=[0.0, *means],
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": upper,
                    "arrayminus": [0.0] * len(upper),
                    "thickness": 1,
                },
                name=f"at {point['at']}",
                mode="lines+markers",
            )
        )
    figure.add_hline(y=OVERHEAD, line={"dash": "dot"}, annotation={"text": "20%"})
    yield "Overhead against batch", "samples for the same loss; bars: one-sided 95% bound", figure

    known = [point for point in points if point["B20"] is not None]
    if known:
        figure = blank_figure("samples seen", "batch")
        figure.update_yaxes(type="log", rangemode="normal")
        bars = {
            "type": "data",
            "symmetric": False,
            "array": [(point["high"] or point["B20"]) - point["B20"] for point in known],
            "arrayminus": [point["B20"] - (point["low"] or point["B20"]) for point in known],
            "thickness": 1,
        }
        figure.add_trace(
            Scatter(
                x=[point["samples"] for point in known],
                y=[point["B20"] for point in known],
                error_y=bars,
                name="B20",
                mode="lines+markers",
            )
        )
        for name in dict.fromkeys(name for point in points for name in point["noise"]):
            if name.endswith(("_low", "_high")) or "_of_set" in name:
                continue
            of = [point for point in points if name in point["noise"]]
            figure.add_trace(
                Scatter(
                    x=[point["samples"] for point in of],
                    y=[OVERHEAD * point["noise"][name] for point in of],
                    name=f"0.2 x {name.replace('_', ' ')}",
                    mode="lines+markers",
                    line={"dash": "dash"},
                )
            )
        yield "B20 along the run", "bars: 95%", figure

    for point in points:
        if not point["curves"]:
            continue
        figure = blank_figure("samples since the checkpoint", "held-out loss")
        figure.update_yaxes(rangemode="normal")
        for curve in point["curves"]:
            figure.add_trace(
                Scatter(
                    x=curve["samples"],
                    y=curve["losses"],
                    name=f"batch {curve['batch']:,}",
                    mode="lines",
                )
            )
        figure.add_vline(x=details["window"], line={"dash": "dot"})
        yield f"Branches at {point['at']}", "first seed, the rule's rate; dotted: a window", figure
