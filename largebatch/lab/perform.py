"""Run one experiment: from its name to its record and page."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from largebatch._errors import UserError, raised
from largebatch.lab.experiment import Experiment, Findings, Scale, experiments
from largebatch.record import BenchmarkRecord
from largebatch.report.record_page import Tile, write_page

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

HOLDS = {True: "as claimed", False: "not as claimed", None: "cannot tell"}


def seeds_of(experiment: type[Experiment], quick: bool, count: int | None) -> range:
    """Return the seeds of a measurement: as many as are asked for, or its own number, at most 2
    where seconds are meant."""
    return range(count or (min(experiment.seeds, 2) if quick else experiment.seeds))


def perform(name: str, quick: bool, seeds: int | None = None) -> tuple[Findings, BenchmarkRecord]:
    """Measure the experiment ``name``; torch's generator is restored afterwards.

    Args:
        quick: take seconds, not minutes.
        seeds: number of seeds; None: see :func:`seeds_of`.

    Raises:
        UserError: there is no such experiment, or the name is of something else.
    """
    import torch

    factory = experiments.entry(name).factory
    try:
        experiment = factory()
    except Exception as error:
        raise UserError(f"lab {name}: to make it raised {raised(error)}") from error
    if not isinstance(experiment, Experiment):
        raise UserError(f"lab {name}: {type(experiment).__name__} is no largebatch.lab.Experiment")
    scale = Scale(quick, seeds_of(factory, quick, seeds))
    began = time.monotonic()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        findings = experiment.measure(scale)
    details = {
        "experiment": name,
        "lecture": experiment.lecture,
        "claim": experiment.claim,
        "source": experiment.source,
        "quick": quick,
        "seeds": len(scale.seeds),
        "minutes": round((time.monotonic() - began) / 60, 3),
        "verdict": findings.verdict(len(scale.seeds)),
        "checks": [asdict(check) for check in findings.checks],
    }
    formula = f"{experiment.lecture}: {experiment.claim} ({experiment.source})"
    rows = [_short(row) for row in findings.rows]
    record = BenchmarkRecord(f"lab {name}", formula, rows, notes=findings.notes, details=details)
    return findings, record


def _short(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row whose numbers have five digits, which is more than any of them is worth."""
    return {key: float(f"{v:.5g}") if isinstance(v, float) else v for key, v in row.items()}


def words(record: BenchmarkRecord) -> str:
    """Return the claim, the table, the checks and the verdict as text."""
    checks = [
        f"{HOLDS[each['holds']]:<15} {each['what']}: {each['claimed']}; here {each['measured']}"
        for each in record.details["checks"]
    ]
    seconds = 60 * record.details["minutes"]
    verdict = f"{record.details['verdict']} ({seconds:.1f} s, seeds {record.details['seeds']})"
    return "\n".join([record.table(), "", *checks, "", f"verdict: {verdict}"])


def write_pictures(path: Path, findings: Findings, record: BenchmarkRecord) -> None:
    """Write the page: the checks as tiles, the charts, the table.

    Raises:
        UserError: ``path`` cannot be written.
    """
    tiles = [
        Tile(check.what, check.measured, [f"claimed: {check.claimed}", HOLDS[check.holds]])
        for check in findings.checks
    ]
    lead = f"{record.formula}. Verdict: {record.details['verdict']}."
    write_page(path, record, drawn(findings), record.name, tiles, lead)


def drawn(findings: Findings) -> Sequence[tuple[str, str, Figure]]:
    """Return the charts with their figures."""
    return [(title, note, draw()) for title, note, draw in findings.charts]


def file_stem(name: str) -> str:
    """Return an experiment's name in a form for files: jam-N* becomes jam-N."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")


def listed(record: BenchmarkRecord) -> dict[str, Any]:
    """Return an experiment's row in a table of many: its first check, how many hold, verdict."""
    details = record.details
    first = details["checks"][0]
    held = sum(check["holds"] is True for check in details["checks"])
    return {
        "experiment": details["experiment"],
        "verdict": details["verdict"],
        "figure": first["what"],
        "claimed": first["claimed"],
        "measured": first["measured"],
        "checks that hold": f"{held} of {len(details['checks'])}",
        "seeds": details["seeds"],
        "minutes": details["minutes"],
        "lecture": details["lecture"],
        "claim": details["claim"],
    }
