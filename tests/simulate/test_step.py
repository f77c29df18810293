"""The simulation against timelines drawn by hand, and what no step can do."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largebatch._errors import UserError
from largebatch.simulate import Compute, Contention, bucket, simulate

MB = 1_000_000


def work(*ready: float, forward: float = 2.0, backward: float = 4.0, optimizer: float = 1.0):
    return Compute(forward, backward, optimizer, tuple((moment, MB) for moment in ready))


def intervals(step, stream):
    return [(e.name, e.start, e.end) for e in step.events if e.stream == stream]


def test_by_hand():
    """Gradients after 1, 2 and 4 s of backward; all-reduces of 1.5 s, one at a time."""
    step = simulate(work(1.0, 2.0, 4.0), [[0], [1], [2]], lambda size: 1.5)
    assert intervals(step, "communication") == [
        ("bucket 0", 3.0, 4.5),
        ("bucket 1", 4.5, 6.0),
        ("bucket 2", 6.0, 7.5),
    ]
    assert intervals(step, "compute") == [
        ("forward", 0.0, 2.0),
        ("backward", 2.0, 6.0),
        ("optimizer", 7.5, 8.5),
    ]
    assert (step.seconds, step.exposed, step.communication) == (8.5, 1.5, 4.5)


def test_a_bucket_waits_for_its_last_gradient_and_for_those_before_it():
    step = simulate(work(3.0, 1.0, 0.5), [[0, 1], [2]], lambda size: 0.25)
    assert intervals(step, "communication") == [("bucket 0", 5.0, 5.25), ("bucket 1", 5.25, 5.5)]
    assert step.exposed == 0


def test_what_has_waited_may_take_less():
    """Bucket 1 is complete before bucket 0 is back, bucket 2 half a second after bucket 1 is."""
    step = simulate(work(1.0, 2.0, 4.0), [[0], [1], [2]], lambda size: 1.5, behind=2 / 3)
    assert intervals(step, "communication") == [
        ("bucket 0", 3.0, 4.5),
        ("bucket 1", 4.5, 5.5),
        ("bucket 2", 6.0, 7.5),
    ]
    assert step.communication == 4.5


def test_without_overlap_everything_waits_for_the_backward_pass():
    step = simulate(work(1.0, 2.0), [[0], [1]], lambda size: 1.5, overlap=False)
    assert intervals(step, "communication") == [("bucket 0", 6.0, 7.5), ("bucket 1", 7.5, 9.0)]
    assert step.exposed == 3.0


def test_contention_by_hand():
    """From 3 s on both streams are busy at half pace; 1 s of all-reduce takes 2."""
    step = simulate(work(1.0), [[0]], lambda size: 1.0, contention=Contention(0.5, 0.5))
    assert intervals(step, "communication") == [("bucket 0", 3.0, 5.0)]
    assert intervals(step, "compute")[1] == ("backward", 2.0, 7.0)
    assert step.exposed == 1.0


def test_one_stream_may_stand_still():
    step = simulate(work(1.0), [[0]], lambda size: 1.0, contention=Contention(1.0, 0.0))
    assert intervals(step, "compute")[1] == ("backward", 2.0, 7.0)
    step = simulate(work(1.0), [[0]], lambda size: 1.0, contention=Contention(0.0, 1.0))
    assert intervals(step, "communication") == [("bucket 0", 3.0, 7.0)]


def test_contention_beyond_all_is_refused():
    with pytest.raises(UserError, match="at most 1"):
        Contention(0.6, 0.6)
    with pytest.raises(UserError, match="from 0 up"):
        Contention(-0.1, 0.0)


def test_one_rank_alone_exchanges_nothing():
    step = simulate(work(1.0, 4.0), [[0], [1]], None)
    assert step.seconds == 7.0 and step.exposed == 0 and step.communication == 0


def test_buckets_are_the_engines_own():
    """``engine/bucket.py`` groups by the same rule: a model's tensors fall into the same places."""
    import torch

    from largebatch.engine.bucket import make_buckets

    shapes = [(3, 40), (7,), (200, 30), (64, 64), (5,), (100, 100)]
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    ours = make_buckets(parameters, 0.03)
    compute = Compute(0, 0, 0, tuple((0.0, 4 * p.numel()) for p in reversed(parameters)))
    sizes = [[compute.gradients[i][1] for i in places] for places in bucket(compute, 0.03)]
    assert sizes == [[4 * p.numel() for p in b.parameters()] for b in ours]
    assert len(sizes) > 2


@st.composite
def computes(draw):
    backward = draw(st.floats(1e-3, 10))
    shares = draw(st.lists(st.floats(0, 1), min_size=1, max_size=12))
    sizes = draw(st.lists(st.integers(1, 10**8), min_size=len(shares), max_size=len(shares)))
    gradients = tuple((share * backward, size) for share, size in zip(shares, sizes, strict=True))
    return Compute(draw(st.floats(0, 10)), backward, draw(st.floats(0, 1)), gradients)


rates = st.floats(1e-10, 1e-6)
contentions = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(
    lambda pair: Contention(pair[0], min(pair[1], 1 - pair[0]))
)
megabytes = st.sampled_from([0.5, 5.0, 50.0])
NEAR = 1 + 1e-9


@given(computes(), megabytes, rates, contentions)
def test_never_below_its_parts(compute, size, rate, contention):
    """Compute alone; communication alone; the first gradient, then all of communication."""
    buckets = bucket(compute, size)
    step = simulate(compute, buckets, lambda n: n * rate, contention=contention)
    first = max(compute.gradients[place][0] for place in buckets[0])
    assert step.seconds * NEAR >= compute.seconds
    assert step.seconds * NEAR >= (compute.forward + first + step.communication + compute.optimizer)


@given(computes(), megabytes, rates, contentions)
def test_overlap_is_never_slower(compute, size, rate, contention):
    buckets = bucket(compute, size)
    overlapped = simulate(compute, buckets, lambda n: n * rate, contention=contention)
    serial = simulate(compute, buckets, lambda n: n * rate, False, contention)
    assert overlapped.seconds <= serial.seconds * NEAR
    assert serial.seconds == pytest.approx(compute.seconds + serial.communication)


@given(computes(), megabytes, rates, st.floats(1, 10), contentions)
def test_more_bandwidth_never_hurts(compute, size, rate, factor, contention):
    buckets = bucket(compute, size)
    slow = simulate(compute, buckets, lambda n: n * rate * factor, contention=contention)
    fast = simulate(compute, buckets, lambda n: n * rate, contention=contention)
    assert fast.seconds <= slow.seconds * NEAR


@given(computes(), megabytes, rates, contentions)
def test_events_follow_each_other(compute, size, rate, contention):
    """A stream does one task at a time, in order, and none before what it waits for."""
    buckets = bucket(compute, size)
    step = simulate(compute, buckets, lambda n: n * rate, contention=contention)
    assert [e.start for e in step.events] == sorted(e.start for e in step.events)
    for stream in ("compute", "communication"):
        tasks = intervals(step, stream)
        assert all(start <= end for _, start, end in tasks)
        assert all(a[2] <= b[1] * NEAR for a, b in pairwise(tasks))
    sent = intervals(step, "communication")
    assert [name for name, *_ in sent] == [f"bucket {i}" for i in range(len(buckets))]
    assert sum(e.bytes for e in step.events) == sum(n for _, n in compute.gradients)
    for (_, start, _), places in zip(sent, buckets, strict=True):
        ready = max(compute.gradients[place][0] for place in places)
        assert start * NEAR >= compute.forward + ready
    assert intervals(step, "compute")[-1][1] * NEAR >= sent[-1][2]
