"""benchmarks/README.md: made from the records, and up to date."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def records() -> ModuleType:
    spec = importlib.util.spec_from_file_location("records", ROOT / "benchmarks" / "records.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["records"] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(records: ModuleType) -> None:
    found = records.PAGE.read_text(encoding="utf-8")
    assert found == records.page(), "run python benchmarks/records.py"


def test_every_record_has_a_row_and_a_section(records: ModuleType) -> None:
    page = records.page()
    for path in records.RESULTS.glob("*.json"):
        assert f"`results/{path.name}`" in page, path.name
    rows = re.findall(r"^\| \[.*\]\(#(.*?)\) \|", page, re.MULTILINE)
    titles = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert rows == [records._anchor(title) for title in titles]


def test_a_bar_is_judged(records: ModuleType) -> None:
    from largebatch.record import BenchmarkRecord

    record = BenchmarkRecord("x", "f", [{"a": 1, "ratio": 0.9}, {"a": 2, "ratio": 1.2}], {})
    assert records._bar(record, {"row": {"a": 1}, "column": "ratio", "least": 1.0}) == (
        "at least 1.0: missed by 10%"
    )
    assert records._bar(record, {"row": {"a": 2}, "column": "ratio", "most": 1.2}) == (
        "at most 1.2: met"
    )
    with pytest.raises(AssertionError, match="no row"):
        records._bar(record, {"row": {"a": 3}, "column": "ratio", "least": 1.0})


def test_the_lines_of_a_formula_are_told_apart(records: ModuleType) -> None:
    assert records._sentence("a = b /\n  c\nd = e;\nf: g\n") == "A = b / c; d = e; f: g."
