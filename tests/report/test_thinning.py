"""Thinning keeps what an eye would miss."""

import random

from hypothesis import given
from hypothesis import strategies as st

from largebatch.report.thinning import thin


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(2, 50))
def test_extremes_and_ends_stay(values, most):
    kept = thin(values, most)
    assert kept == sorted(set(kept))
    assert kept[0] == 0
    assert kept[-1] == len(values) - 1
    drawn = [values[index] for index in kept]
    assert min(drawn) == min(values)
    assert max(drawn) == max(values)
    assert len(kept) <= max(most, 2) + 2


def test_a_single_spike_in_a_million_steps_stays():
    values = [random.Random(0).random()] * 10**6
    values[123_456] = 7.0
    kept = thin(values, 2000)
    assert 123_456 in kept
    assert len(kept) <= 2002


def test_short_series_stay_whole():
    assert thin([3.0, 1.0, 2.0], 3) == [0, 1, 2]
