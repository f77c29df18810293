"""Bench tokens at a small size: what it says is what was measured."""

from __future__ import annotations

import pytest

from largebatch._errors import UserError
from largebatch.bench.tokens import REFERENCE, run, settings_of


def test_rows_are_of_the_same_model_and_the_reference_is_one() -> None:
    record = run([3], settings_of("1x2x16", 16, 256), seconds=0.05, rounds=3)
    ours, plain, *peers = record.rows
    assert (ours["contender"], plain["contender"]) == ("largebatch", REFERENCE)
    assert ours["parameters"] == plain["parameters"]
    assert plain[f"times {REFERENCE}"] == 1.0
    assert ours["tokens/s"] > 0 and ours["p5"] <= ours["tokens/s"] <= ours["p95"]
    for peer in peers:  # measured where it is installed, said where it is not
        assert str(peer["tokens/s"]).startswith("not run") or (
            peer["parameters"] == ours["parameters"]
        )


@pytest.mark.parametrize(("model", "vocabulary"), [("4x4", 256), ("4x0x8", 256), ("4x4x8", 100)])
def test_what_is_no_model_is_refused(model: str, vocabulary: int) -> None:
    with pytest.raises(UserError, match="largebatch bench tokens: --"):
        settings_of(model, 64, vocabulary)
