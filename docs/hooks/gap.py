"""The picture of the gap: `python docs/hooks/gap.py` writes docs/images/gap.svg from the record.

It lies in the repository, because the README shows it too; a test says when it is out of date.
"""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "benchmarks/results/generalization_gap_mnist.json"
PICTURE = ROOT / "docs/images/gap.svg"

LABELS = {
    "small batch": "batch 128",
    "large batch": "batch 4,096, nothing adapted",
    "+ rate by the root": "+ square-root learning rate",
    "+ ghosts": "+ ghost batch norm of 128",
    "+ regime": "+ regime adaptation (a fifth)",
}
LEFT, WIDTH, ROW, TOP = 250, 560, 40, 44
LOW, HIGH = 97.8, 99.0  # top-1 in % at the ends of the axis
STYLE = (
    "text{font:14px system-ui,sans-serif;fill:#24292f}.s{font-size:12px;fill:#57606a}"
    ".a{stroke:#d0d7de}.z{stroke:#3f51b5;stroke-dasharray:4 4}.g{stroke:#c2410c;stroke-width:3}"
    ".m{fill:#3f51b5}.d{fill:#3f51b5;fill-opacity:.35}"
)


def place(top1: float) -> float:
    """Return where a top-1 lies on the axis, in pixels."""
    return round(LEFT + (top1 - LOW) / (HIGH - LOW) * WIDTH, 1)


def gap_svg() -> str:
    """Return the picture as SVG: a row a recipe; every seed, their mean, the gap to batch 128."""
    rows = json.loads(RECORD.read_text(encoding="utf-8"))["rows"]
    small = place(rows[0]["top1"])
    bottom = TOP + ROW * len(rows)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 {bottom + 40}" role="img">',
        "<title>Top-1 of F1 on MNIST: the gap of a large batch, opened and closed</title>",
        f'<style>{STYLE}</style><rect width="900" height="{bottom + 40}" fill="#fff"/>',
        '<text class="s" x="12" y="22">top-1 on MNIST in %, after 50 epochs (the last row: 320), '
        "three seeds and their mean</text>",
    ]
    for tenth in range(round(LOW * 10), round(HIGH * 10) + 1, 2):
        x = place(tenth / 10)
        parts += [
            f'<line class="a" x1="{x}" y1="{TOP - 8}" x2="{x}" y2="{bottom}"/>',
            f'<text class="s" x="{x}" y="{bottom + 20}" text-anchor="middle">{tenth / 10}</text>',
        ]
    parts.append(f'<line class="z" x1="{small}" y1="{TOP - 8}" x2="{small}" y2="{bottom}"/>')
    for number, row in enumerate(rows):
        y, mean = TOP + ROW * number + 16, place(row["top1"])
        parts.append(f'<text x="12" y="{y + 5}">{LABELS[row["training"]]}</text>')
        if row["gap"]:
            parts += [
                f'<line class="g" x1="{mean}" y1="{y}" x2="{small}" y2="{y}"/>',
                f'<text class="s" x="{small + 10}" y="{y + 4}">gap {row["gap"]:.2f}</text>',
            ]
        parts += [f'<circle class="d" cx="{place(top1)}" cy="{y}" r="5"/>' for top1 in row["all"]]
        parts.append(f'<circle class="m" cx="{mean}" cy="{y}" r="7"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(gap_svg(), encoding="utf-8")
    print(PICTURE)
