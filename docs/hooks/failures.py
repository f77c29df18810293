"""The table of injected failures, from the record that `benchmarks/failures.py` writes."""

from __future__ import annotations

import json
from pathlib import Path

RECORD = Path(__file__).resolve().parents[2] / "benchmarks/results/failures.json"
LIMIT = 220  # characters of what was said: messages of gloo's end in its own lines of source


def failures_table() -> str:
    """Return what was injected, what happened, what was said and after how many seconds."""
    rows = json.loads(RECORD.read_text(encoding="utf-8"))["rows"]
    lines = ["| injected | outcome | said | seconds |", "|---|---|---|---|"]
    for row in rows:
        said = row["said"].partition(" ([/")[0].replace("|", "\\|")
        said = said if len(said) <= LIMIT else said[:LIMIT] + "…"
        lines.append(f"| {row['failure']} | {row['outcome']} | {said} | {row['seconds']:g} |")
    return "\n".join(lines)
