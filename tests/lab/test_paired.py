"""Pairs of one seed each."""

from __future__ import annotations

from operator import gt, lt

from largebatch.lab.paired import compared, exceeds


def test_an_order_holds_where_every_pair_keeps_it() -> None:
    assert compared("loss", "smaller", [1.0, 2.0], [2.0, 3.0], lt).holds is True
    assert compared("loss", "larger", [1.0, 2.0], [2.0, 3.0], gt).holds is False
    mixed = compared("loss", "smaller", [1.0, 4.0], [2.0, 3.0], lt)
    assert mixed.holds is None and mixed.measured == "2.5 (1 to 4) against 2.5 (2 to 3)"


def test_a_difference_is_told_from_chance() -> None:
    assert exceeds([2.0, 2.1, 1.9], [1.0, 1.0, 1.0]) is True
    assert exceeds([1.0, 1.0, 1.0], [2.0, 2.1, 1.9]) is False
    assert exceeds([1.0, 3.0, 2.0], [2.0, 1.0, 3.0]) is None and exceeds([2.0], [1.0]) is None
