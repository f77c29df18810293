"""Every all-reduce that is listed: sums, means and squared norms, by real ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from largebatch.distributed.all_reduce import STARTS
from largebatch.distributed.preference import Preference

SIZE, HOSTS = 4, [0, 0, 1, 1]


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("name", STARTS)
def test_sums_means_and_squares(name: Any, mean: bool, ranks: Callable[..., Any]) -> None:
    group = ranks(SIZE, Preference(algorithm=name), HOSTS)
    assert group.reducers[0].selection.choose(1000).algorithm == name
    torch.manual_seed(0)
    parts = [torch.randn(7, 3).t() for _ in range(SIZE)]  # with a layout of its own
    total = torch.stack(parts).double().sum(0) / (SIZE if mean else 1)
    tensors = [part.clone() for part in parts]
    squares = [torch.zeros(2, dtype=torch.float64) for _ in range(SIZE)]
    works = group.on_ranks(
        SIZE,
        lambda rank, _: group.reducers[rank].start(tensors[rank], mean=mean, squares=squares[rank]),
    )
    for work in works:
        work.wait()
    for tensor in tensors:
        assert torch.equal(tensor, tensors[0])
        torch.testing.assert_close(tensor.double(), total, rtol=1e-5, atol=1e-6)
    before, after = torch.stack(squares).sum(0).tolist()
    assert before == pytest.approx(float(torch.stack(parts).double().square().sum()))
    assert after == pytest.approx(float(tensors[0].double().square().sum()))
