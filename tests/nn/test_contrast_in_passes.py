"""A contrastive step in micro-batches is the step in one pass: value, gradient, statistics."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from largebatch._errors import UserError
from largebatch.nn import (
    GhostBatchNorm,
    contrast_in_passes,
    contrastive_loss,
    ghost_place,
    losses_of_passes,
    step_end,
)
from largebatch.processes.ending import end_group

EXACT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}
GHOST, PAIRS, INPUTS, WIDTH = 4, 16, 6, 5
SPANS = ([slice(0, 16)], [slice(0, 4), slice(4, 12), slice(12, 16)], [slice(0, 8), slice(8, 16)])


class Encoder(nn.Module):
    """One ghost norm for each of the views, so that a step has its ghosts in the order of pairs."""

    def __init__(self, drop: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Linear(INPUTS, 8)
        self.norms = nn.ModuleList(GhostBatchNorm(8, GHOST) for _ in range(2))
        self.head = nn.Sequential(nn.ReLU(), nn.Dropout(drop), nn.Linear(8, WIDTH))
        self.root = nn.Parameter(torch.tensor(0.6))
        self.bias = nn.Parameter(torch.tensor(-1.0))

    def forward(self, view: Tensor, side: int) -> Tensor:
        embedding: Tensor = self.head(self.norms[side](self.stem(view)))
        return embedding


def views() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, PAIRS, INPUTS, dtype=torch.float64, generator=generator)


def made(drop: float = 0.0) -> Encoder:
    torch.manual_seed(0)
    return Encoder(drop).double()


def step(net: Encoder, spans: Sequence[slice], kind: str, group: Any = None) -> float:
    """Take a step's passes over ``spans`` of the pairs; return the summed loss."""
    both = views()

    def encode(span: slice) -> tuple[Tensor, Tensor]:
        if span.start == span.stop:
            return both.new_empty(0, WIDTH), both.new_empty(0, WIDTH)
        with ghost_place(span.start // GHOST, PAIRS // GHOST):
            a, b = (net(both[side][span], side) for side in (0, 1))
        return a, b

    options: dict[str, Any] = {"bias": net.bias} if kind == "siglip" else {}
    total = 0.0
    temperature = net.root.square()
    for loss in contrast_in_passes(net, encode, spans, temperature, group, kind, **options):
        (loss / PAIRS).backward()
        total += loss.item()
    step_end(net, PAIRS // GHOST)
    return total


def gradients(net: nn.Module) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()]


def whole(net: Encoder, kind: str) -> float:
    both = views()
    options: dict[str, Any] = {"bias": net.bias} if kind == "siglip" else {}
    a, b = (net(both[side], side) for side in (0, 1))
    loss = contrastive_loss(a, b, net.root.square(), "alone", kind, **options)
    (loss / PAIRS).backward()
    return loss.item()


@pytest.mark.parametrize("kind", ["ntxent", "clip", "siglip"])
def test_micro_batches_are_the_whole_step(kind: str) -> None:
    expected = made()
    loss = whole(expected, kind)
    for spans in SPANS:
        net = made()
        assert step(net, spans, kind) == pytest.approx(loss, rel=1e-13)
        torch.testing.assert_close(gradients(net), gradients(expected), **EXACT)
        torch.testing.assert_close(net.state_dict(), expected.state_dict(), **EXACT)


def test_both_passes_draw_the_same_dropout() -> None:
    net = made(drop=0.4)
    seen: list[list[Tensor]] = [[], []]
    both = views()

    def encode(span: slice) -> tuple[Tensor, Tensor]:
        a, b = net(both[0][span], 0), net(both[1][span], 1)
        seen[int(torch.is_grad_enabled())] += [a.detach(), b.detach()]
        return a, b

    torch.manual_seed(7)
    for loss in contrast_in_passes(net, encode, SPANS[1], 0.2):
        loss.backward()
    torch.testing.assert_close(seen[0], seen[1], rtol=0, atol=0)
    assert not torch.equal(seen[0][0], seen[0][2])
    # The gradient is that of one pass with these draws.
    grads = gradients(net)
    torch.manual_seed(7)
    again = copy.deepcopy(net)
    again.zero_grad()
    parts = [[again(both[side][span], side) for side in (0, 1)] for span in SPANS[1]]
    a, b = (torch.cat([part[side] for part in parts]) for side in (0, 1))
    contrastive_loss(a, b, 0.2).backward()
    torch.testing.assert_close(grads, gradients(again), **EXACT)


def test_autocast_around_both_passes_keeps_the_weights_graph() -> None:
    net, x = nn.Linear(INPUTS, WIDTH), views().float()

    def encode(span: slice) -> tuple[Tensor, Tensor]:
        return net(x[0][span]), net(x[1][span])

    with torch.autocast("cpu", torch.bfloat16):
        for loss in contrast_in_passes(net, encode, SPANS[2], 0.2):
            loss.backward()
    assert all(gradient.abs().sum() > 0 for gradient in gradients(net))


def test_what_is_wrong_is_said_in_one_line() -> None:
    a, b = torch.randn(2, 4, WIDTH)
    with pytest.raises(UserError, match="no micro-batch: an empty one for a rank without samples"):
        losses_of_passes([], 0.1)
    with pytest.raises(UserError, match="temperature=0: must be above 0"):
        losses_of_passes([(a, b)], 0)
    losses = losses_of_passes([(a[:3], b[:3]), (a[3:], b[3:])], 0.1)
    with pytest.raises(UserError, match=r"gave \(4, 5\), in its first \(3, 5\)"):
        losses[0](a, b)


def rank_main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=3
    )
    mine = ([slice(0, 4), slice(4, 12)], [slice(12, 16)], [slice(16, 16)])[rank]
    for kind in ("ntxent", "clip", "siglip"):
        expected, net = made(), made()
        known = whole(expected, kind)
        loss = torch.tensor(step(net, mine, kind), dtype=torch.float64)
        dist.all_reduce(loss)
        assert loss.item() == pytest.approx(known, rel=1e-13)
        summed = gradients(net)
        for gradient in summed:
            dist.all_reduce(gradient)
        torch.testing.assert_close(summed, gradients(expected), **EXACT)
    end_group()


@pytest.mark.slow
def test_ranks_with_different_passes_are_one_process(tmp_path: Path) -> None:
    mp.start_processes(rank_main, (tmp_path,), nprocs=3, start_method="forkserver")
