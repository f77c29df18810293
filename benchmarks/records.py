"""Write benchmarks/README.md from the records in results/ and from claims.yaml.

    python benchmarks/records.py

A figure is taken from its record when the page is made, so that the page cannot say another one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from largebatch.record import BenchmarkRecord, markdown_table, read_record

HERE = Path(__file__).parent
PAGE, CLAIMS, RESULTS = HERE / "README.md", HERE / "claims.yaml", HERE / "results"
HEAD = """\
<!-- made by benchmarks/records.py from results/ and claims.yaml; change those -->

# Records

Every row names what was measured, what it is held against, on which machine, by which command. The
JSON of each lies in `results/`; its section below gives the formula. Figures stand as found.
"""
NO_GPU = "No GPU figure is among them: none could be measured.\n"
MOST = 30  # rows of a table: more are for the JSON
Row = dict[str, Any]


@dataclass
class Claim:
    """A record and what it is to show; the fields are described in claims.yaml."""

    record: str
    title: str
    claim: str
    figures: list[dict[str, Any]]
    baseline: dict[str, Any]
    bars: tuple[dict[str, Any], ...] = ()
    command: str = ""
    columns: tuple[str, ...] = ()
    where: dict[str, Any] | None = None
    count: dict[str, Any] | None = None
    groups: str = ""
    learnt: str = ""
    history: dict[str, Any] | None = None


def claims() -> list[Claim]:
    """Return the claims, and one for each record that has none yet."""
    told = [Claim(**entry) for entry in yaml.safe_load(CLAIMS.read_text(encoding="utf-8"))]
    missing = {path.stem for path in RESULTS.glob("*.json")} - {each.record for each in told}
    nothing = {"text": "see below"}
    return told + [Claim(n, n, f"`{n}`", [nothing], {"text": ""}) for n in sorted(missing)]


def page() -> str:
    """Return the text of README.md."""
    told = [(claim, read_record(RESULTS / f"{claim.record}.json")) for claim in claims()]
    head = ("claim", "figure", "baseline", "bar", "date", "hardware", "command")
    table = markdown_table(head, [list(_summary(claim, record)) for claim, record in told])
    has_gpu = any(record.environment["gpus"] for _, record in told)
    sections = [_section(*each) for each in told]
    return "\n".join([HEAD, *([] if has_gpu else [NO_GPU]), table, "", *sections])


def _summary(claim: Claim, record: BenchmarkRecord) -> Iterator[str]:
    yield f"[{claim.claim}](#{_anchor(claim.title)})"
    yield "; ".join(_said(claim, record, figure) for figure in claim.figures)
    yield _said(claim, record, claim.baseline)
    yield "; ".join(_bar(record, bar) for bar in claim.bars)
    yield record.environment["date"][:10]
    yield _hardware(record)
    yield f"`{_command(claim, record)}`"


def _said(claim: Claim, record: BenchmarkRecord, figure: dict[str, Any]) -> str:
    values: Row = {"notes": "; ".join(record.notes), "total": len(record.rows)}
    if claim.count is not None:
        values["passed"] = sum(_matches(row, claim.count) for row in record.rows)
    if "row" in figure:
        values |= _row(record, figure["row"])
    return str(figure["text"].format_map(values))


def _bar(record: BenchmarkRecord, bar: dict[str, Any]) -> str:
    value = _row(record, bar["row"])[bar["column"]]
    side = "least" if "least" in bar else "most"
    is_met = value >= bar["least"] if side == "least" else value <= bar["most"]
    share = abs(value / bar[side] - 1)
    name = f"{bar['name']} " if "name" in bar else ""
    return f"{name}at {side} {bar[side]}: {'met' if is_met else f'missed by {share:.0%}'}"


def _row(record: BenchmarkRecord, wanted: Row) -> Row:
    found = [row for row in record.rows if _matches(row, wanted)]
    assert found, f"{record.name}: no row with {wanted}"
    return found[0]


def _matches(row: Row, wanted: Row) -> bool:
    return all(
        key in row if value == "any" else row.get(key) == value for key, value in wanted.items()
    )


def _hardware(record: BenchmarkRecord) -> str:
    told = record.environment
    machine = ", ".join(told["gpus"]) or f"{told['cpu']}, {told['cores']} cores"
    return f"{machine.replace('(R)', '')}, torch {told['torch']}"


def _command(claim: Claim, record: BenchmarkRecord) -> str:
    said = claim.command or record.environment["command"].replace("__main__.py", "largebatch")
    return said if said.startswith(("largebatch", "python", "sudo", "MALLOC")) else f"python {said}"


def _anchor(title: str) -> str:
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


def _section(claim: Claim, record: BenchmarkRecord) -> str:
    rows = [row for row in record.rows if _matches(row, claim.where or {})]
    parts = [f"## {claim.title}", f"`results/{claim.record}.json`. {_sentence(record.formula)}"]
    if claim.groups:
        rows = list(_counts(rows, claim))
    if len(rows) <= MOST:
        part = BenchmarkRecord(record.name, record.formula, rows, record.environment)
        parts.append(part.markdown(claim.columns))
    if claim.learnt:
        parts.append(" ".join(claim.learnt.split()))
    if claim.history:
        parts += [
            "Before and after:",
            markdown_table(claim.history["columns"], claim.history["rows"]),
        ]
    return "\n\n".join(parts) + "\n"


def _counts(rows: list[Row], claim: Claim) -> Iterator[Row]:
    """Yield how many rows of each group count as passed."""
    for name in dict.fromkeys(row[claim.groups] for row in rows):
        group = [row for row in rows if row[claim.groups] == name]
        passed = sum(_matches(row, claim.count or {}) for row in group)
        yield {claim.groups: name, "passed": passed, "of": len(group)}


def _sentence(text: str) -> str:
    """Return a formula as a sentence; a line that is not indented begins a new part of it."""
    parts = re.split(r";?\n(?! )", text.strip())
    said = "; ".join(" ".join(part.split()) for part in parts).rstrip(".")
    return f"{said[0].upper()}{said[1:]}."


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
