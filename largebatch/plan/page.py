"""Write the plan as one HTML file that opens offline, in the report's style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from largebatch import __version__
from largebatch._errors import UserError
from largebatch.distributed.cost_model import ALL_REDUCE_FORMULAS
from largebatch.record import write_atomically
from largebatch.report.page import HERE as REPORT
from largebatch.report.page import json_for_html, plotly_without_addresses
from largebatch.simulate.cluster import FORMULAS, MEASURES, Prediction, figures
from largebatch.simulate.nccl import NCCL_FORMULAS
from largebatch.simulate.step import SimulatedStep

HERE = Path(__file__).parent
CHARTS = (
    ("efficiency", "Efficiency against GPUs", "weak scaling: step of one rank alone / step"),
    ("step", "Step time against GPUs", "ms; dotted: no step is shorter"),
    ("batch", "Efficiency against batch", "on the nodes asked for"),
    ("timeline", "One step", "auto, on the nodes asked for; a bar of communication is a bucket"),
)


def write_page(
    output: str | Path,
    title: str,
    asked: Sequence[Prediction],
    along: Mapping[str, Sequence[Prediction]],
    step: SimulatedStep,
    notes: Sequence[str],
) -> None:
    """Write the page.

    Args:
        output: path of the file.
        title: what was planned.
        asked: the predictions for the planned case, one per method.
        along: predictions along ``nodes`` and along ``batch``.
        step: simulated step whose events are drawn.
        notes: assumptions and sources of the figures.

    Raises:
        UserError: ``output`` cannot be written.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    own = asked[-1]
    data = {
        "methods": [p.method for p in asked],
        "along": {by: [asdict(p) for p in lines] for by, lines in along.items()},
        "events": [asdict(event) for event in step.events],
    }
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("page.html.j2").render(
        title=title,
        figures=[
            ("global batch", f"{own.global_batch:,}"),
            ("step", f"{1e3 * own.step_seconds:.1f} ms"),
            ("exposed", f"{1e3 * own.exposed_seconds:.1f} ms"),
            ("efficiency", f"{own.efficiency:.1%}"),
            ("FLOP bound", f"{1e3 * own.flops_bound_seconds:.1f} ms"),
            ("memory bound", f"{1e3 * own.memory_bound_seconds:.1f} ms"),
            ("network bound", f"{1e3 * own.network_bound_seconds:.1f} ms"),
            ("memory, at least", f"{own.memory_bytes / 1e9:.1f} GB"),
        ],
        heads=MEASURES,
        rows=[(p.method, figures(p)) for p in asked],
        charts=CHARTS,
        notes=notes,
        formulas=f"{FORMULAS}\n\n{ALL_REDUCE_FORMULAS}\n\n{NCCL_FORMULAS}",
        version=__version__,
        style=Markup((REPORT / "page.css").read_text(encoding="utf-8")),
        script=Markup((HERE / "page.js").read_text(encoding="utf-8")),
        plotly=Markup(plotly_without_addresses()),
        data=Markup(json_for_html(data)),
    )
    try:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(Path(output), page)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror})") from None
