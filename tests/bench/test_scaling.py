"""Scaling: which cases there are, what the figures are made of, and the page."""

from __future__ import annotations

from typing import Any

import pytest

from largebatch._errors import UserError
from largebatch.bench import scaling
from largebatch.bench.scaling import DDP, EPOCH, OURS, Case, Settings, cases
from largebatch.cli import main
from largebatch.record import BenchmarkRecord, read_record
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


@pytest.mark.slow
def test_the_steps_of_a_run(tmp_path: Any, capsys: Any) -> None:
    """A recipe is timed with its own model, images, norms and optimizer; so is a run's config."""
    file = tmp_path / "scaling.json"
    common = ["--ranks", "1", "--batches", "16", "--seconds", "0.01", "--rounds", "1"]
    common += ["--json", str(file)]
    assert main(["bench", "scaling", "--recipe", "digits", *common]) == 0
    record = read_record(file)
    assert {each["contender"] for each in record.rows} == {OURS, DDP}
    assert "digits_cnn on digits as the run is configured (sgd)" in record.notes[0]
    assert "1,442 images an epoch" in record.notes[0]
    config = tmp_path / "config.yaml"
    config.write_text("model: {name: digits_cnn}\ndata: {name: digits}\noptim: {name: lars}\n")
    assert main(["bench", "scaling", "--config", str(config), *common]) == 0
    assert "(lars)" in read_record(file).notes[0]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--recipe", "digits", "--models", "resnet18"], "one of --recipe, --config, and --models"),
        (["--recipe", "digits", "--config", "x.yaml"], "one of --recipe, --config, and --models"),
        (["--recipe", "char"], "it times classification of images"),
        (["--recipe", "didgits"], "did you mean"),
        (["--config", "absent.yaml"], "absent.yaml"),
    ],
)
def test_runs_that_are_not_timed(capsys: Any, more: list[str], words: str) -> None:
    assert main(["bench", "scaling", *more]) == 2
    assert words in capsys.readouterr().err
