"""Stateless draws: uniform, independent, and the same however they are asked for."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from largebatch.data.draws import SampleDraws, Stream, integers, key, uniform

INDICES = np.arange(20_000)


def test_draws_are_uniform() -> None:
    draws = uniform(3, 5, INDICES, Stream.CROP, 3)
    assert draws.shape == (20_000, 3)
    assert draws.min() >= 0
    assert draws.max() < 1
    for column in draws.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-4


def test_draws_of_other_samples_numbers_streams_epochs_and_seeds_are_independent() -> None:
    base = uniform(3, 5, INDICES, Stream.CROP, 2)
    others = {
        "number": base[:, 1],
        "sample": np.roll(base[:, 0], 1),
        "stream": uniform(3, 5, INDICES, Stream.FLIP)[:, 0],
        "epoch": uniform(3, 6, INDICES, Stream.CROP)[:, 0],
        "seed": uniform(4, 5, INDICES, Stream.CROP)[:, 0],
    }
    for name, other in others.items():
        joint = np.histogram2d(base[:, 0], other, bins=8, range=[[0, 1], [0, 1]])[0]
        assert stats.chisquare(joint.ravel()).pvalue > 1e-4, name
        assert abs(np.corrcoef(base[:, 0], other)[0, 1]) < 5 / math.sqrt(len(INDICES)), name


def test_a_draw_does_not_depend_on_its_company() -> None:
    whole = uniform(1, 2, INDICES, Stream.FLIP, 4)
    assert np.array_equal(uniform(1, 2, INDICES[77:99], Stream.FLIP, 4), whole[77:99])
    assert np.array_equal(uniform(1, 2, INDICES, Stream.FLIP, 2), whole[:, :2])


def test_one_sample_draws_the_row_of_many() -> None:
    rows = uniform(9, 4, np.array([0, 123, 10**12]), Stream.CROP, 5)
    for index, row in zip((0, 123, 10**12), rows, strict=True):
        draws = SampleDraws(9, 4, index, Stream.CROP)
        assert [draws.uniform() for _ in range(5)] == row.tolist()


def test_integers_cover_their_range_evenly() -> None:
    draws = integers(0, 0, INDICES, Stream.CROP, 9)[:, 0]
    counts = np.bincount(draws, minlength=9)
    assert len(counts) == 9
    assert stats.chisquare(counts).pvalue > 1e-4


def test_keys_tell_words_and_their_order_apart() -> None:
    keys = {key(a, b) for a in range(50) for b in range(50)}
    assert len(keys) == 2500
    assert key(1) != key(1, 0)
    assert key(-1, 2) == key(-1, 2)
