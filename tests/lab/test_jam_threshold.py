"""N* against the number of examples, where it was found and where it was not."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from largebatch.lab import jam_threshold, jamming
from largebatch.lab.experiment import Scale


def measured(monkeypatch: pytest.MonkeyPatch, found: dict[int, int | None], seeds: int):
    """Return the first check where N* of so many examples is ``found``, and all pictures drawn."""

    def threshold(scanned: Sequence[jamming.Scanned]) -> int | None:
        return found[scanned[0].broken.item()]

    def scan(shapes, data, *others, **options) -> list[jamming.Scanned]:
        count = torch.tensor([len(data.y)])
        return [jamming.Scanned(1, count, torch.tensor([1.0]), count)]

    monkeypatch.setattr(jam_threshold, "threshold", threshold)
    monkeypatch.setattr(jam_threshold, "scan", scan)
    findings = jam_threshold.Jamming().measure(Scale(True, range(seeds)))
    assert all(draw().data for _, _, draw in findings.charts)
    return findings.checks[0]


@pytest.mark.parametrize(
    ("found", "seeds"),
    [
        ({64: None, 128: None, 256: None}, 2),
        ({64: None, 128: 100, 256: None}, 1),
        ({64: 50, 128: 100, 256: None}, 1),
        ({64: None, 128: 100, 256: None}, 3),  # three, but of one number of examples
    ],
)
def test_too_few_for_a_line_cannot_tell(monkeypatch, found, seeds) -> None:
    check = measured(monkeypatch, found, seeds)
    assert check.holds is None
    assert check.measured.endswith("found, too few for a line")


@pytest.mark.parametrize(("found", "holds"), [((50, 100, 200), True), ((50, 71, 100), False)])
def test_a_line_is_told_from_a_root(monkeypatch, found, holds) -> None:
    check = measured(monkeypatch, dict(zip((64, 128, 256), found, strict=True)), 1)
    assert check.holds is holds
