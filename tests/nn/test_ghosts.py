import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from largebatch.nn import GhostBatchNorm, ghost_sizes, has_batch_norm, minimum_samples
from largebatch.nn.ghosts import split_ghosts


@pytest.mark.parametrize(
    ("samples", "ghost_size", "minimum", "expected"),
    [
        (8, 4, 2, [4, 4]),
        (10, 4, 2, [4, 4, 2]),
        (9, 4, 2, [4, 5]),
        (9, 4, 1, [4, 4, 1]),
        (3, 4, 2, [3]),
        (5, 4, 2, [5]),
        (1, 4, 1, [1]),
    ],
)
def test_the_last_ghost_is_shorter_or_joins(samples, ghost_size, minimum, expected):
    assert ghost_sizes(samples, ghost_size, minimum) == expected


@given(st.integers(1, 300), st.integers(2, 40), st.integers(1, 2))
def test_sizes_partition_the_samples(samples, ghost_size, minimum):
    sizes = ghost_sizes(samples, ghost_size, minimum)
    assert sum(sizes) == samples
    assert all(size == ghost_size for size in sizes[:-1])
    assert len(sizes) == 1 or minimum <= sizes[-1] < ghost_size + minimum


def test_a_limit_joins_one_ghost_too_many():
    assert split_ghosts(9, 4, limit=2) == (1, 5)
    assert split_ghosts(9, 4, limit=3) == (2, 1)


def test_which_models_have_batch_norms():
    assert has_batch_norm(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    assert has_batch_norm(nn.Sequential(GhostBatchNorm(2, 4)))
    assert not has_batch_norm(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))
    assert minimum_samples(nn.BatchNorm2d(3)) == 2
    assert minimum_samples(nn.Linear(2, 2)) == 1
