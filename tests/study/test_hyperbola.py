"""The line behind the hyperbola: known answers, its interval, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from largebatch.study.convergence import Cell
from largebatch.study.hyperbola import NoHyperbola, account_of_misfit, fit_line, interpolate

BATCHES = (8, 16, 32, 64, 128, 256)


def drawn(seed: int, least: float = 1000.0, steps: float = 10.0, runs: int = 5) -> list[Cell]:
    """Cells of a true line whose runs scatter by 5%."""
    generator = np.random.default_rng(seed)
    found = []
    for batch in BATCHES:
        mean = least + steps * batch
        needed = mean * (1 + 0.05 * generator.standard_normal(runs))
        found.append(Cell(batch, tuple(needed.tolist())))
    return found


def test_an_exact_line_is_found() -> None:
    cells = [Cell(b, (1000.0 + 10 * b, 1010.0 + 10 * b, 990.0 + 10 * b)) for b in BATCHES]
    line = fit_line(cells)
    assert line.samples == pytest.approx(1000) and line.steps == pytest.approx(10)
    assert line.critical == pytest.approx(100) and line.fits and line.low < 100 < line.high
    assert line.needed(64) == pytest.approx(1640)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    lines = [fit_line(drawn(seed)) for seed in range(400)]
    covered = sum(line.low <= 100 <= line.high for line in lines) / len(lines)
    assert 0.90 <= covered <= 0.985, covered
    fits = sum(line.fits for line in lines) / len(lines)
    assert fits > 0.95  # a true line is turned down in about 1% of cases


def test_a_run_a_batch_is_enough_where_the_scatter_tells_the_error() -> None:
    lines = [fit_line(drawn(seed, runs=1)) for seed in range(300)]
    covered = sum(line.low <= 100 <= line.high for line in lines) / len(lines)
    assert 0.90 <= covered <= 0.985, covered
    assert lines[0].misfit is None


def test_more_scatter_than_the_runs_have_widens_the_interval() -> None:
    cells = drawn(0)
    moved = [
        Cell(c.batch, tuple(v * (1.2 if n % 2 else 0.85) for v in c.needed))
        for n, c in enumerate(cells)
    ]
    line = fit_line(moved)
    assert not line.fits and line.scatter > 5
    assert line.high - line.low > 3 * (fit_line(cells).high - fit_line(cells).low)


@pytest.mark.parametrize(
    ("needed", "words"),
    [
        ([1442, 1442, 1442, 1442, 1442, 1442], "evaluate more often"),
        ([1000, 1005, 995, 1002, 998, 1001], "does not grow"),
        ([1000, 950, 900, 850, 800, 700], "does not grow"),
        ([80, 161, 319, 641, 1280, 2561], "grows in proportion"),
    ],
)
def test_what_is_no_hyperbola_is_refused(needed: list[float], words: str) -> None:
    cells = [Cell(b, (0.99 * v, v, 1.01 * v)) for b, v in zip(BATCHES, needed, strict=True)]
    with pytest.raises(NoHyperbola, match=words):
        fit_line(cells)


def test_two_batches_are_too_few() -> None:
    with pytest.raises(NoHyperbola, match="2 batches"):
        fit_line(drawn(0)[:2])


def test_interpolation_supposes_no_law() -> None:
    flat = [Cell(b, (100.0, 101.0, 99.0)) for b in (1, 2, 4, 8)]
    steep = [Cell(b, (100.0 * b / 8, 101.0 * b / 8, 99.0 * b / 8)) for b in (16, 32)]
    found = interpolate([*flat, *steep])
    # From 100 at 8 to 200 at 16: a fifth of the way.
    assert found.batch == pytest.approx(9.6)
    assert found.low is not None and found.high is not None
    assert found.low < found.batch < found.high
    assert interpolate(flat).batch is None
    cells = [*flat, *steep, Cell(64, (790.0, 800.0, 810.0))]
    words = account_of_misfit(cells, fit_line(cells))
    assert words == "flat to batch 8, then a step: 16 needs 100% more"
