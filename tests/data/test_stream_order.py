"""Text read on side by side: each stream continues where it left off."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from largebatch._errors import UserError
from largebatch.data import StreamOrder


@pytest.mark.parametrize(("n", "streams"), [(12, 3), (12, 12), (12, 1), (1000, 8)])
def test_a_stream_is_continued_every_step(n, streams):
    order = StreamOrder(n, streams)
    steps = [order.indices(0, start, start + streams) for start in range(0, n, streams)]
    for before, after in pairwise(steps):
        assert (after == before + 1).all()
    assert sorted(np.concatenate(steps)) == list(range(n))
    assert (order.indices(3, 0, n) == np.concatenate(steps)).all()
    assert (order.indices(0, 2, 5) == np.concatenate(steps)[2:5]).all() if n > 5 else True


def test_what_does_not_divide_is_refused_with_what_would():
    with pytest.raises(UserError, match=r"13 windows do not divide into 4 streams: take 12"):
        StreamOrder(13, 4)
    order = StreamOrder(12, 4)
    order.require_divides({"batch.size": 4}, total=24)
    with pytest.raises(UserError, match=r"schedule\.length: 26 samples leave 2 in the last step"):
        order.require_divides({"batch.size": 4}, total=26)
    with pytest.raises(UserError, match=r"batch\.plan\[1\]\.size=6: .* 4 streams .* take 4"):
        order.require_divides({"batch.plan[0].size": 4, "batch.plan[1].size": 6}, total=24)
