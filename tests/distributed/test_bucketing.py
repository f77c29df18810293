from largebatch.distributed.bucketing import pack


def test_a_tensor_that_would_pass_the_limit_opens_a_bucket():
    assert pack([("a", 4), ("a", 6), ("a", 1), ("a", 20), ("a", 1)], 10) == [[0, 1], [2], [3], [4]]


def test_kinds_never_share_a_bucket():
    assert pack([("a", 4), ("b", 4), ("a", 4), ("b", 9)], 10) == [[0, 2], [1], [3]]


def test_nothing_needs_no_bucket():
    assert pack([], 10) == []
