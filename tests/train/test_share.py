from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from largebatch.train.share import (
    Part,
    even_ghost_size,
    ghost_count,
    in_step,
    share,
    share_over_ranks,
)


@given(
    size=st.integers(1, 500),
    ghost_size=st.integers(1, 64),
    ghosts_per_pass=st.one_of(st.none(), st.integers(1, 4)),
    world_size=st.integers(1, 7),
    minimum=st.sampled_from([1, 2]),
)
def test_every_sample_once_in_whole_ghosts(size, ghost_size, ghosts_per_pass, world_size, minimum):
    ghost_size = max(ghost_size, minimum)
    micro = None if ghosts_per_pass is None else ghosts_per_pass * ghost_size
    passes = [
        one
        for rank in range(world_size)
        for one in share(size, ghost_size, micro, rank, world_size, minimum)
    ]
    assert [p.start for p in passes] == [0, *(p.stop for p in passes)][:-1]
    assert passes[-1].stop == size
    sizes = [s for p in passes for s in p.sizes]
    assert sum(sizes) == size
    assert len(sizes) == ghost_count(size, ghost_size, minimum)
    assert [p.first_ghost for p in passes] == [
        sum(q.ghosts for q in passes[:i]) for i in range(len(passes))
    ]
    # torch.split's sizes, but that a last ghost below the minimum joins the one before.
    full, rest = divmod(size, ghost_size)
    expected = [ghost_size] * full + [rest] * (rest > 0)
    if len(expected) > 1 and expected[-1] < minimum:
        expected = [*expected[:-2], expected[-2] + expected[-1]]
    assert sizes == expected


@given(size=st.integers(1, 300), ghost_size=st.integers(1, 40), world_size=st.integers(1, 6))
def test_ranks_are_as_even_as_can_be_and_the_last_may_be_empty(size, ghost_size, world_size):
    counts = [
        sum(p.ghosts for p in share(size, ghost_size, None, rank, world_size))
        for rank in range(world_size)
    ]
    assert max(counts) - min(counts) <= 1
    assert counts == sorted(counts, reverse=True)


@given(
    size=st.integers(1, 300),
    ghost_size=st.integers(2, 40),
    groups=st.integers(1, 4),
    span=st.integers(1, 4),
)
def test_ranks_of_a_group_make_the_same_passes_and_share_each_ghost(size, ghost_size, groups, span):
    world = groups * span
    passes = [share_over_ranks(size, ghost_size, span, r, world, 2) for r in range(world)]
    ghosts = {}
    for rank, own in enumerate(passes):
        first = passes[rank // span * span]
        assert [p.first_ghost for p in own] == [p.first_ghost for p in first]
        for one in own:
            ghosts.setdefault(one.first_ghost, []).append(one)
            assert (one.ghosts, one.sizes) == (1, (one.stop - one.start,))
    assert sorted(ghosts) == list(range(ghost_count(size, ghost_size, 2)))
    whole = share(size, ghost_size, ghost_size, 0, 1, 2)
    for number, parts in ghosts.items():
        assert len(parts) == span
        assert [p.start for p in parts[1:]] == [p.stop for p in parts[:-1]]
        assert (parts[0].start, parts[-1].stop) == (whole[number].start, whole[number].stop)
        sizes = [p.stop - p.start for p in parts]
        assert max(sizes) - min(sizes) <= 1


@given(
    size=st.integers(1, 300),
    micro=st.one_of(st.none(), st.integers(1, 40)),
    groups=st.integers(1, 4),
    span=st.integers(1, 4),
)
def test_an_even_ghost_fits_the_micro_batch_and_needs_no_more_passes(size, micro, groups, span):
    ghost = even_ghost_size(size, micro, span, groups * span)
    assert micro is None or ghost <= micro * span
    assert ghost_count(size, ghost) <= groups * (1 if micro is None else -(-size // micro))
    passes = [share_over_ranks(size, ghost, span, r, groups * span) for r in range(groups * span)]
    if micro is None:
        assert max(len(own) for own in passes) <= 1


@given(
    size=st.integers(2, 300),
    ghost_size=st.integers(2, 40),
    ghosts_per_pass=st.one_of(st.none(), st.integers(1, 4)),
    world_size=st.integers(1, 6),
)
def test_in_step_all_ranks_make_as_many_passes_and_the_same_real_ones(
    size, ghost_size, ghosts_per_pass, world_size
):
    micro = None if ghosts_per_pass is None else ghosts_per_pass * ghost_size
    own = [share(size, ghost_size, micro, rank, world_size, 2) for rank in range(world_size)]
    padded = [in_step(passes, len(own[0]), 2) for passes in own]
    assert {len(passes) for passes in padded} == {len(own[0])}
    for passes, real in zip(padded, own, strict=True):
        idle = len(passes) - len(real)
        assert passes[:idle] == (Part(0, 2, 0, 1, 2, idle=True),) * idle
        assert passes[idle:] == real


def test_the_documented_examples():
    assert ghost_count(70, 32) == 3
    assert ghost_count(65, 32) == 3
    assert ghost_count(65, 32, minimum=2) == 2
    (first,) = share(70, 32, None, 0, 2)[:1]
    assert (first.start, first.stop, first.sizes) == (0, 64, (32, 32))
    (second,) = share(70, 32, None, 1, 2)
    assert (second.start, second.stop, second.first_ghost, second.sizes) == (64, 70, 2, (6,))
    assert share(32, 32, None, 1, 2) == ()
