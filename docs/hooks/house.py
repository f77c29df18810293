"""The picture of the house: which room stands on which floor, from the table that a test holds."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WIDTH, HEIGHT, GAP = 960, 46, 8
STYLE = (
    "text{font:14px system-ui,sans-serif;fill:#1a1a1a}.f{fill:#5a5a5a;font-size:13px}"
    "rect{fill:#e8ecf8;stroke:#3f51b5}"
)


def floors() -> list[list[str]]:
    """Return the rooms of each floor, the ground floor first, without its private ones."""
    tree = ast.parse((ROOT / "tests/test_house.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "FLOORS":
            assert node.value is not None
            found = [list(_names(floor)) for floor in node.value.elts]  # type: ignore[attr-defined]
            return [
                [room for room in rooms if not room.startswith("_") or room in ("_ops", "__main__")]
                for rooms in found
            ]
    raise AssertionError("tests/test_house.py has no FLOORS")


def _names(floor: ast.expr) -> Iterator[str]:
    for each in ast.walk(floor):
        if isinstance(each, ast.Constant):
            yield each.value


def house_svg() -> str:
    """Return the picture as SVG: a row a floor, the highest on top."""
    rows = floors()
    height = len(rows) * (HEIGHT + GAP) + GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        "<title>Rooms of the package by floor: imports go down</title>",
        f"<style>{STYLE}</style>",
    ]
    for number, rooms in enumerate(reversed(rows)):
        top = GAP + number * (HEIGHT + GAP)
        middle = top + HEIGHT // 2 + 5
        parts.append(f'<text class="f" x="8" y="{middle}">floor {len(rows) - 1 - number}</text>')
        width = (WIDTH - 80) // len(rooms)
        for place, room in enumerate(rooms):
            left = 76 + place * width
            parts.append(
                f'<rect x="{left}" y="{top}" width="{width - GAP}" height="{HEIGHT}" rx="6"/>'
                f'<text x="{left + (width - GAP) // 2}" y="{middle}" text-anchor="middle">'
                f"{escape(room)}</text>"
            )
    return "\n".join([*parts, "</svg>"]) + "\n"
