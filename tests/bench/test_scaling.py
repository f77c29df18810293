"""Scaling: which cases there are, what the figures are made of, and the page."""

from __future__ import annotations

from typing import Any

import pytest

from largebatch._errors import UserError
from largebatch.bench import scaling
from largebatch.bench.scaling import DDP, EPOCH, OURS, Case, Settings, cases
from largebatch.record import BenchmarkRecord
from largebatch.report.record_page import write_page

SETTINGS = Settings("resnet18", image_size=32, seconds=0.01, rounds=1, price=2.0, epochs=10)


def test_cases() -> None:
    assert cases([1, 2], [8]) == [Case("weak", 1, 8), Case("weak", 2, 8), Case("strong", 2, 4)]
    with pytest.raises(UserError, match="--ranks 2 4: from 1 up"):
        cases([2, 4], [8])
    with pytest.raises(UserError, match="--batches 6: 4 ranks do not divide it"):
        cases([1, 2, 4], [6])


@pytest.fixture(scope="module")
def record() -> BenchmarkRecord:
    return scaling.run([1, 2], [4], SETTINGS)


def row(record: BenchmarkRecord, contender: str, mode: str, ranks: int) -> dict[str, Any]:
    key = (contender, mode, ranks)
    return next(r for r in record.rows if (r["contender"], r["mode"], r["ranks"]) == key)


@pytest.mark.slow
@pytest.mark.parametrize("contender", [OURS, DDP])
def test_figures_are_their_formulas(record: BenchmarkRecord, contender: str) -> None:
    one, weak = row(record, contender, "weak", 1), row(record, contender, "weak", 2)
    strong = row(record, contender, "strong", 2)
    assert (one["efficiency"], weak["global batch"], strong["global batch"]) == (1.0, 8, 4)
    for many in (weak, strong):
        assert many["p5"] <= many["images/s"] <= many["p95"]
        assert many["efficiency"] == pytest.approx(many["images/s"] / 2 / one["images/s"], abs=1e-4)
        hours = EPOCH / many["images/s"] / 3600
        assert many["hours an epoch"] == pytest.approx(hours, abs=1e-3)
        assert many["cost an epoch"] == pytest.approx(hours * 2 * 2.0, abs=0.01)
        assert many["cost to target"] == pytest.approx(10 * many["cost an epoch"], abs=0.01)


@pytest.mark.slow
def test_our_rows_say_where_time_goes_and_what_was_predicted(record: BenchmarkRecord) -> None:
    weak = row(record, OURS, "weak", 2)
    phases = [weak[f"{name} ms"] for name in ("data", "compute", "communication", "optimizer")]
    step = 1e3 * weak["global batch"] / weak["images/s"]
    assert min(phases) >= 0 and 0.5 * step < sum(phases) < 1.5 * step
    assert weak["predicted images/s"] > 0 and weak["all-reduce ms"] > 0


@pytest.mark.slow
def test_the_page_is_drawn_offline(record: BenchmarkRecord, browser: Any, tmp_path: Any) -> None:
    page = tmp_path / "scaling.html"
    charts = scaling.charts(record)
    write_page(page, record, charts)
    browser.get_log("browser")
    browser.get(page.as_uri())
    drawn = browser.execute_script(
        "return Array.from(document.querySelectorAll('.plotly-graph-div')).map(e => e.data.length)"
    )
    assert len(drawn) == len(charts) and min(drawn) >= 1
    first = browser.execute_script(
        "return Array.from(document.querySelector('.plotly-graph-div').data[0].y)"
    )
    assert first == [row(record, OURS, "weak", ranks)["images/s"] for ranks in (1, 2)]
    assert browser.get_log("browser") == []
    wide = browser.execute_script("return document.documentElement.scrollWidth > innerWidth")
    assert not wide
