"""The page of a benchmark's or study's record."""

from __future__ import annotations

import re
from pathlib import Path

from largebatch.record import BenchmarkRecord
from largebatch.report.record_page import write_page


def test_a_column_has_one_alignment(tmp_path: Path) -> None:
    """Names over 32 letters stood on the left, the shorter ones below them on the right."""
    rows = [
        {"task": "short", "batch": 8},
        {"task": "a name of more than thirty-two letters", "batch": 16, "verdict": "fits"},
    ]
    page = tmp_path / "page.html"
    write_page(page, BenchmarkRecord("study", "a = b", rows), [])
    cells = re.findall(r'<t[hd][^>]*class="(words|number)">([^<]*)<', page.read_text())
    assert cells == [
        *(("words", "task"), ("number", "batch"), ("number", "verdict")),
        *(("words", "short"), ("number", "8"), ("number", "")),
        *(("words", rows[1]["task"]), ("number", "16"), ("number", "fits")),
    ]
