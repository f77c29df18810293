"""The keyed permutation: a bijection for any n, and random enough."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from largebatch.data.draws import key
from largebatch.data.order import EpochOrder, Permutation


@pytest.mark.parametrize("n", [*range(1, 70), 97, 100, 1000, 4095, 4096, 4097, 50_000, 65_537])
def test_is_a_bijection(n: int) -> None:
    image = Permutation(n, key(n, 7))(np.arange(n))
    assert image.dtype == np.int64
    assert np.array_equal(np.sort(image), np.arange(n))


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 1 << 62), seed=st.integers(0, 1 << 63), data=st.data())
def test_stays_in_range_and_apart_for_huge_sets(n: int, seed: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, n - 1))
    positions = np.arange(start, min(start + 500, n), dtype=np.int64)
    image = Permutation(n, seed)(positions)
    assert image.min() >= 0
    assert image.max() < n
    assert len(np.unique(image)) == len(positions)


def test_points_do_not_depend_on_the_company_they_are_asked_in() -> None:
    permutation = Permutation(10_007, 3)
    whole = permutation(np.arange(10_007))
    assert int(permutation(1234)) == whole[1234]
    assert np.array_equal(permutation(np.array([[5, 9000], [17, 0]])), whole[[[5, 9000], [17, 0]]])


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_all_orders_of_few_elements_occur_evenly(n: int) -> None:
    orders = math.factorial(n)
    tries = 12 * orders
    points = np.arange(n)
    seen = Counter(tuple(Permutation(n, key(k, 1))(points).tolist()) for k in range(tries))
    assert len(seen) == orders
    assert stats.chisquare(list(seen.values())).pvalue > 1e-4


@pytest.mark.parametrize("n", [7, 30, 200, 5000])
def test_every_element_reaches_every_position_evenly(n: int) -> None:
    """Where the first, middle and last position go, over keys, in ten equal parts of the range."""
    keys = 1000
    positions = np.array([0, n // 2, n - 1])
    for images in np.stack([Permutation(n, key(k, 2))(positions) for k in range(keys)]).T:
        edges = np.arange(min(n, 10) + 1) * n / min(n, 10)
        counts = np.histogram(images, edges)[0]
        sizes = np.histogram(np.arange(n), edges)[0]
        assert stats.chisquare(counts, keys * sizes / n).pvalue > 1e-4


@pytest.mark.parametrize(("n", "batch"), [(50_000, 128), (50_000, 1000), (6_000, 64)])
def test_class_counts_of_batches_are_hypergeometric(n: int, batch: int) -> None:
    """On class-cyclic data (sample i has class i mod 10) an affine order would give every batch the
    same counts; a random one gives the variance of drawing without replacement."""
    classes, epochs = 10, 4
    order = EpochOrder(n, seed=5)
    batches = n // batch
    variance = batch / classes * (1 - 1 / classes) * (n - batch) / (n - 1)
    spread = []
    for epoch in range(epochs):
        labels = order.indices(epoch, 0, n)[: batches * batch] % classes
        counts = np.stack(
            [np.bincount(row, minlength=classes) for row in labels.reshape(-1, batch)]
        )
        spread.append(np.mean((counts - batch / classes) ** 2))
    # Counts of one batch are dependent, so of batches * classes squares fewer are free.
    error = math.sqrt(2 / (epochs * batches * (classes - 1)))
    assert abs(np.mean(spread) / variance - 1) < 5 * error


@pytest.mark.parametrize("n", [1000, 50_000, 65_536])
def test_neighbours_are_uncorrelated(n: int) -> None:
    for seed in range(3):
        image = EpochOrder(n, seed).indices(0, 0, n).astype(np.float64)
        for lag in (1, 2, math.isqrt(n), math.isqrt(n - 1) + 1):
            correlation = np.corrcoef(image[:-lag], image[lag:])[0, 1]
            assert abs(correlation) < 5 / math.sqrt(n), (seed, lag)
        # Steps between neighbours hardly repeat in a random order; in an affine one they all do.
        steps = Counter(np.diff(image).tolist())
        assert max(steps.values()) < 15


def test_fixed_points_and_inversions_are_those_of_random_orders() -> None:
    n, keys = 300, 400
    points = np.arange(n)
    fixed, inversions = 0, []
    for k in range(keys):
        image = Permutation(n, key(k, 3))(points)
        fixed += int((image == points).sum())
        inversions.append(int((image[:, None] > image[None, :])[np.triu_indices(n, 1)].sum()))
    assert abs(fixed - keys) < 5 * math.sqrt(keys)
    mean, variance = n * (n - 1) / 4, n * (n - 1) * (2 * n + 5) / 72
    assert abs(np.mean(inversions) - mean) < 5 * math.sqrt(variance / keys)
    assert 0.7 < np.var(inversions) / variance < 1.35


def test_epochs_and_seeds_have_unrelated_orders() -> None:
    n = 2000
    orders = [EpochOrder(n, seed).indices(epoch, 0, n) for seed in (0, 1) for epoch in (0, 1)]
    for i, first in enumerate(orders):
        for second in orders[:i]:
            assert (first == second).sum() < 12
            assert abs(np.corrcoef(first, second)[0, 1]) < 5 / math.sqrt(n)


@settings(max_examples=60, deadline=None)
@given(
    n=st.sampled_from([1, 100, 8192, 20_000]),
    cuts=st.lists(st.floats(0, 1), min_size=0, max_size=6),
    shuffle=st.booleans(),
)
def test_any_cuts_of_an_epoch_join_to_the_same_order(
    n: int, cuts: list[float], shuffle: bool
) -> None:
    order = EpochOrder(n, seed=11, shuffle=shuffle)
    ends = sorted({0, n, *(int(cut * n) for cut in cuts)})
    parts = [order.indices(3, a, b) for a, b in pairwise(ends)]
    whole = EpochOrder(n, seed=11, shuffle=shuffle).indices(3, 0, n)
    assert np.array_equal(np.concatenate(parts), whole)
    assert np.array_equal(np.sort(whole), np.arange(n))
    assert np.array_equal(whole, np.arange(n)) or shuffle


def test_what_the_caller_does_to_its_indices_changes_nothing() -> None:
    order = EpochOrder(500, seed=0)
    first = order.indices(0, 0, 100)
    kept = first.copy()
    first[:] = 0
    assert np.array_equal(order.indices(0, 0, 100), kept)
