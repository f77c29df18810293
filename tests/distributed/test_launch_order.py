"""On a device the schedule launches in one order on every rank; run here on fake process groups."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from largebatch.distributed.topology import Topology
from largebatch.distributed.torus import STAGES, Torus

fake = pytest.importorskip("torch.testing._internal.distributed.fake_pg")


class Stream:
    """Stands for a CUDA stream: remembers what waits for it."""

    def __init__(self) -> None:
        self.waited = 0

    def wait_stream(self, other: object) -> None:
        self.waited += 1


def fake_group(rank: int, size: int) -> torch.distributed.ProcessGroup:
    """Return a group over torch's fake back end, whose messages arrive at once."""
    import torch.distributed as dist
    from torch._C._distributed_c10d import FakeProcessGroup

    group = dist.ProcessGroup(fake.FakeStore(), rank, size)
    kind = dist.ProcessGroup.BackendType.CUSTOM
    group._register_backend(
        torch.device("cpu"), kind, FakeProcessGroup._create_internal(rank, size)
    )
    group._set_default_backend(kind)
    return group


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function: what one rank launches for two messages of three chunks."""
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)

    def launch(topology: Topology, rank: int) -> tuple[list[tuple[str, int]], list[Any]]:
        place = topology.place(rank)
        row = fake_group(place.position, len(place.row))
        column = None
        if place.column:
            column = fake_group(place.column.index(rank), len(place.column))
        torus = Torus(topology, rank, row, column, torch.device("cpu"))
        torus._stream = Stream()  # type: ignore[assignment]
        order: list[tuple[str, int]] = []
        real = torus._post

        def post(chunk: Any, stage: int, *arguments: Any) -> None:
            order.append((STAGES[stage], chunk.tag))
            torus._stream, kept = None, torus._stream  # the fake back end takes no batches
            real(chunk, stage, *arguments)
            torus._stream = kept

        torus._post = post  # type: ignore[method-assign]
        works = [torus.all_reduce(torch.zeros(120), chunks=3, wire=torch.float32) for _ in range(2)]
        for work in works:
            work.wait()
        assert torus._stream is not None and torus._stream.waited == 2
        return order, works

    return launch


@pytest.mark.parametrize("hosts", ["aabb", "aaabbb", "aaabb"])
def test_every_rank_launches_alike_and_in_a_pipeline(launched, hosts):
    topology = Topology.from_hosts(hosts)
    orders = []
    for rank in range(topology.world_size):
        order, works = launched(topology, rank)
        assert all(work.is_completed() and work.is_success() for work in works)
        if topology.place(rank).column:
            orders.append(order)
    assert all(order == orders[0] for order in orders)
    # While chunk 0 is on the columns, chunk 1 is on the rows.
    first = orders[0][:5]
    assert first == [("row scatter", 0), ("row scatter", 1), ("column scatter", 0),
                     ("row scatter", 2), ("column scatter", 1)]  # fmt: skip
    for stage in STAGES:
        assert [tag for name, tag in orders[0] if name == stage] == list(range(6))
