"""Every experiment that is listed, in quick mode: its identities hold, its pictures draw."""

from __future__ import annotations

import time

import pytest

from largebatch.lab import experiments
from largebatch.lab.perform import drawn, file_stem, perform, words

# By default; the rest are slow.
FASTEST = {
    "mean-field",
    "noisy-gd",
    "res-scale",
    "smooth-loss",
    "spp",
    "tail-alpha",
}  # by default; the rest are slow
QUICK_SECONDS = 8.0  # of processor time on a quiet core; a busy one is given twice as much


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in FASTEST else pytest.mark.slow)
        for name in experiments.names()
    ],
)
def test_an_experiment(name: str) -> None:
    began = time.process_time()
    findings, record = perform(name, quick=True)
    seconds = time.process_time() - began
    broken = [check for check in findings.checks if check.exact and check.holds is not True]
    assert not broken
    assert findings.checks and findings.rows
    assert all(check.what and check.claimed and check.measured for check in findings.checks)
    assert all(row.keys() for row in findings.rows)
    kind = experiments.entry(name).factory
    assert kind.lecture and kind.claim and kind.source and kind.minutes > 0
    charts = drawn(findings)
    assert charts and all(figure.data for _, _, figure in charts)
    assert record.details["verdict"] in words(record)
    assert seconds < 2 * QUICK_SECONDS


def test_the_fastest_are_listed() -> None:
    assert set(experiments.names()) >= FASTEST


def test_names_of_files_differ() -> None:
    assert len({file_stem(name) for name in experiments.names()}) == len(experiments.names())
