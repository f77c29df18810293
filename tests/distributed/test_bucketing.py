import pytest

from largebatch.distributed.bucketing import BUCKETS_MB, choose_bucket_mb, pack
from largebatch.simulate.step import Compute, bucket, simulate


def test_a_tensor_that_would_pass_the_limit_opens_a_bucket():
    assert pack([("a", 4), ("a", 6), ("a", 1), ("a", 20), ("a", 1)], 10) == [[0, 1], [2], [3], [4]]


def test_kinds_never_share_a_bucket():
    assert pack([("a", 4), ("b", 4), ("a", 4), ("b", 9)], 10) == [[0, 2], [1], [3]]


def test_nothing_needs_no_bucket():
    assert pack([], 10) == []


def test_buckets_grow_with_latency_and_shrink_with_overlap():
    def link(latency):
        return lambda bytes: latency + bytes * 2e-10

    assert choose_bucket_mb(1e8, 0.1, link(0.0)) <= 4.0  # the last bucket alone is exposed
    assert choose_bucket_mb(1e8, 0.1, link(1e-2)) >= 16.0
    assert choose_bucket_mb(1e8, 0.0, lambda bytes: 0.0) == 512.0  # all sizes are as good


@pytest.mark.parametrize("backward", [0.0, 0.01, 0.3])
@pytest.mark.parametrize("latency", [0.0, 1e-4, 1e-2])
def test_no_other_size_ends_a_simulated_step_earlier(backward, latency):
    count, size = 1000, 10**5
    gradients = tuple(((i + 1) / count * backward, size) for i in range(count))
    work = Compute(forward=0.0, backward=backward, optimizer=0.0, gradients=gradients)

    def all_reduce(bytes):
        return latency + bytes * 1e-9

    def end(megabytes):
        return simulate(work, bucket(work, megabytes), all_reduce).seconds

    found = choose_bucket_mb(count * size, backward, all_reduce)
    assert end(found) <= 1.02 * min(map(end, BUCKETS_MB))
