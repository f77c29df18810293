"""The tables of the lectures' experiments, from the record of `largebatch lab --all`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RECORD = Path(__file__).resolve().parents[2] / "benchmarks/results/lab.json"
HEAD = ("experiment", "what", "claimed", "ours", "checks", "seeds", "minutes", "verdict")
HOLDS = {True: "yes", False: "**no**", None: "cannot tell"}


def lab_tables(record: Path = RECORD) -> str:
    """Return a table of all experiments, then every check of each, lecture by lecture."""
    if not record.exists():
        return "No record yet: `largebatch lab --all --folder lab` makes `lab/lab.json`."
    text = json.loads(record.read_text(encoding="utf-8"))
    rows, details = text["rows"], text["details"]
    parts = [
        _table(
            (
                "experiment",
                "what",
                "lecture's figure",
                "ours",
                "checks",
                "seeds",
                "minutes",
                "verdict",
            ),
            [
                (
                    f"[{row['experiment']}](#{_anchor(row['experiment'])})",
                    *(row[key] for key in ("figure", "claimed", "measured", "checks that hold")),
                    *(row["seeds"], f"{row['minutes']:.1f}", row["verdict"]),
                )
                for row in rows
            ],
        ),
        " ".join([*text["notes"], _machine(text["environment"])]),
    ]
    for lecture in dict.fromkeys(row["lecture"] for row in rows):
        parts.append(f"## {lecture}")
        for name in (row["experiment"] for row in rows if row["lecture"] == lecture):
            of = details[name]
            parts.append(f"### {name} {{ #{_anchor(name)} }}")
            parts.append(f"> {of['claim']}\n\n{of['source']}. Verdict: {of['verdict']}.")
            checks = [
                (each["what"], each["claimed"], each["measured"], HOLDS[each["holds"]])
                for each in of["checks"]
            ]
            parts.append(_table(("what", "claimed", "ours", "holds"), checks))
    return "\n\n".join(parts)


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    lines += [" | ".join(str(cell).replace("|", "\\|") for cell in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def _anchor(name: str) -> str:
    return "lab-" + "".join(letter if letter.isalnum() else "-" for letter in name)


def _machine(environment: dict[str, Any]) -> str:
    cores = f"{environment['cores']} cores of {environment['cpu']}"
    return f"On {cores}, {environment['date'][:10]}, `{environment['command']}`."
