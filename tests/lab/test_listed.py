"""Every experiment that is listed, in quick mode: its identities hold, its pictures draw."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch

from largebatch.lab import experiments
from largebatch.lab.descent import fit
from largebatch.lab.digits import drawn_digits
from largebatch.lab.networks import perceptron
from largebatch.lab.perform import drawn, file_stem, perform, words

FASTEST = {
    "mean-field",
    "noisy-gd",
    "res-scale",
    "smooth-loss",
    "spp",
    "tail-alpha",
}  # by default; the rest are slow
YARDS = 50  # most of quick mode; a yard is some 0.27 seconds on a quiet core


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in FASTEST else pytest.mark.slow)
        for name in experiments.names()
    ],
)
def test_an_experiment(name: str, record_property: Callable[[str, object], None]) -> None:
    yard = _yard()
    began = time.process_time()
    findings, record = perform(name, quick=True)
    seconds = time.process_time() - began
    yards = 2 * seconds / (yard + _yard())
    record_property("yards", round(yards, 1))
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
    assert yards < YARDS


def _yard() -> float:
    """Return the processor time of a fixed piece of work, as slow as machine and neighbours are."""
    (train, _), model = drawn_digits(300, 0), perceptron((64, 64, 64, 10), 0)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    fit(model, train, optimizer, 50, 1, 0)  # the first step of a process imports much
    began = time.process_time()
    fit(model, train, optimizer, 50, 400, 0)
    return time.process_time() - began


def test_the_fastest_are_listed() -> None:
    assert set(experiments.names()) >= FASTEST


def test_names_of_files_differ() -> None:
    assert len({file_stem(name) for name in experiments.names()}) == len(experiments.names())
