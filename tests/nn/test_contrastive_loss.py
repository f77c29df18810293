"""Contrastive losses equal the whole matrix of logits, whoever holds its rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from largebatch._errors import UserError
from largebatch.bench.messages import BACKEND, groups_of, messages, register
from largebatch.nn import contrastive_loss
from largebatch.nn.contrast_arguments import GATHERED
from largebatch.processes.ending import end_group

EXACT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}
KINDS = ("ntxent", "clip", "siglip")
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
WIDTH = 5
SHARES = (7, 5, 3, 1)


def whole_matrix(
    a: Tensor, b: Tensor, temperature: Tensor, kind: str, bias: Tensor, normalize: bool = True
) -> Tensor:
    """Return the loss as the papers write it, summed over pairs."""
    if normalize:
        a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
    count = len(a)
    pairs = torch.arange(count, device=a.device)
    if kind == "ntxent":
        views = torch.cat((a, b))
        logits = (views @ views.t() / temperature).fill_diagonal_(-math.inf)
        return F.cross_entropy(logits, torch.cat((pairs + count, pairs)), reduction="sum") / 2
    logits = a @ b.t() / temperature
    if kind == "clip":
        losses = [F.cross_entropy(m, pairs, reduction="sum") for m in (logits, logits.t())]
        return (losses[0] + losses[1]) / 2
    signs = 2 * torch.eye(count, dtype=a.dtype, device=a.device) - 1
    return -F.logsigmoid(signs * (logits + bias)).sum()


def embeddings(count: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(2, count, WIDTH, dtype=torch.float64, generator=generator)
    return [z.to(dtype) for z in drawn]


def numbers() -> tuple[Tensor, Tensor]:
    """Return a temperature and a bias that ask for gradients."""
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    return temperature, torch.tensor(-1.5, dtype=torch.float64, requires_grad=True)


def with_gradients(
    loss: Callable[..., Tensor], a: Tensor, b: Tensor, kind: str, scale: float = 1.0, **options: Any
) -> list[Tensor]:
    """Return the loss and the gradients of a, b, the temperature and siglip's bias."""
    temperature, bias = numbers()
    inputs = [a.clone().requires_grad_(), b.clone().requires_grad_(), temperature]
    if kind == "siglip":
        inputs.append(bias)
    if loss is contrastive_loss:
        options["bias"] = bias if kind == "siglip" else None
        value = loss(*inputs[:3], kind=kind, **options)
    else:
        value = loss(*inputs[:3], kind, bias, **options)
    return [value.detach(), *torch.autograd.grad(value * scale, inputs)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_whole_matrix(kind: str, normalize: bool, device: str) -> None:
    a, b = (z.to(device) for z in embeddings(16))
    expected = with_gradients(whole_matrix, a, b, kind, scale=0.7, normalize=normalize)
    for tile in (1, 3, 16, None):
        found = with_gradients(
            contrastive_loss, a, b, kind, scale=0.7, normalize=normalize, tile=tile
        )
        torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.parametrize("tile", [3, None])
def test_golden_values(tile: int | None) -> None:
    count, t = 6, 0.5
    same = torch.ones(count, 2 * count, dtype=torch.float64)
    loss = contrastive_loss(same, same, t, tile=tile) / count
    assert loss.item() == pytest.approx(math.log(2 * count - 1), abs=1e-14)
    apart = torch.eye(count, 2 * count, dtype=torch.float64)
    loss = contrastive_loss(apart, apart, t, tile=tile) / count
    known = -1 / t + math.log(math.exp(1 / t) + 2 * count - 2)
    assert loss.item() == pytest.approx(known, abs=1e-14)
    loss = contrastive_loss(apart, apart, t, kind="clip", tile=tile) / count
    known = -1 / t + math.log(math.exp(1 / t) + count - 1)
    assert loss.item() == pytest.approx(known, abs=1e-14)
    loss = contrastive_loss(apart, apart, t, kind="siglip", bias=-1.0, tile=tile) / count
    known = math.log1p(math.exp(1 - 1 / t)) + (count - 1) * math.log1p(math.exp(-1))
    assert loss.item() == pytest.approx(known, abs=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind: str) -> None:
    a, b = (z.requires_grad_() for z in embeddings(5))

    def loss(a: Tensor, b: Tensor, temperature: Tensor, bias: Tensor) -> Tensor:
        options: dict[str, Any] = {"bias": bias} if kind == "siglip" else {}
        return contrastive_loss(a, b, temperature, kind=kind, tile=2, **options)

    assert torch.autograd.gradcheck(loss, (a, b, *numbers()))
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss(a, b, *numbers()), a, create_graph=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_narrow_types_are_summed_in_float32_and_a_small_temperature_does_not_overflow(
    kind: str, dtype: torch.dtype
) -> None:
    a, b = embeddings(40, dtype)
    for temperature in (0.1, 0.001):
        inputs = [a.clone().requires_grad_(), b.clone().requires_grad_()]
        exact = [z.double().requires_grad_() for z in (a, b)]
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = contrastive_loss(*inputs, temperature, kind=kind, tile=7)
        known = whole_matrix(*exact, torch.tensor(temperature), kind, torch.tensor(0.0))
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss.double(), known, rtol=2e-6, atol=0)
        found, expected = torch.autograd.grad(loss, inputs), torch.autograd.grad(known, exact)
        for gradient, reference in zip(found, expected, strict=True):
            assert gradient.dtype == dtype
            size = reference.abs().max().item()
            torch.testing.assert_close(
                gradient.double(), reference, rtol=2 * torch.finfo(dtype).eps, atol=1e-4 * size
            )


class Largest(TorchDispatchMode):
    """Notes the numbers in the largest tensor that an operator returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.untyped_storage().nbytes() // 8)
        return result


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_larger_than_the_embeddings_and_two_tiles(kind: str) -> None:
    count, tile = 120, 15
    a, b = (torch.randn(count, WIDTH, dtype=torch.float64, requires_grad=True) for _ in range(2))
    with Largest() as largest:
        contrastive_loss(a, b, 0.1, kind=kind, tile=tile).backward()
    assert largest.numbers <= max(count * WIDTH, 2 * tile * tile)


@pytest.mark.slow
def test_a_compiled_step_calls_it() -> None:
    torch.compiler.reset()

    def step(x: Tensor) -> Tensor:
        return contrastive_loss(x * 2, x.sin(), 0.1) / 16

    x = embeddings(16)[0].requires_grad_()
    found = torch.autograd.grad(torch.compile(step, backend="aot_eager")(x), x)
    torch.testing.assert_close(found, torch.autograd.grad(step(x), x), **EXACT)


def test_what_is_wrong_is_said_in_one_line() -> None:
    a, b = embeddings(4)
    for arguments, options, message in (
        ((a, b, 0.0), {}, "temperature=0: must be above 0"),
        ((a, b, torch.tensor(-1.0)), {}, "temperature=-1: must be above 0"),
        ((a, b, math.nan), {}, "temperature=nan: must be finite"),
        ((a, b, torch.ones(2)), {}, r"temperature of shape \(2,\): must be one number"),
        ((a, b[:3], 0.1), {}, r"shapes \(4, 5\) and \(3, 5\): must be \(n, d\)"),
        ((a[0], b[0], 0.1), {}, r"shapes \(5,\) and \(5,\): must be \(n, d\)"),
        ((a, b.float(), 0.1), {}, "types float64 and float32: one of float64"),
        ((a.long(), b.long(), 0.1), {}, "types int64 and int64: one of float64"),
        ((a[:1], b[:1], 0.1), {}, "1 pairs on all ranks: at least 2"),
        ((a, b, 0.1), {"kind": "simclr"}, "kind='simclr': choose from ntxent, clip, siglip"),
        ((a, b, 0.1), {"bias": 1.0}, "bias: kind=ntxent has none"),
        ((a, b, 0.1), {"tile": 0}, "tile=0: must be at least 1"),
        ((a, b, 0.1), {"exchange": "tree"}, "exchange='tree': choose from gather, ring, or None"),
        ((a, b, 0.1), {"group": "all"}, "group='all': a process group, 'alone' or None"),
    ):
        with pytest.raises(UserError, match=message):
            contrastive_loss(*arguments, **options)


def check_whole_matrix(rank: int, group: Any, shares: tuple[int, ...]) -> None:
    whole = embeddings(sum(shares))
    mine = slice(sum(shares[:rank]), sum(shares[: rank + 1]))
    for kind in KINDS:
        expected = with_gradients(whole_matrix, *whole, kind)
        for exchange in ("gather", "ring"):
            found = with_gradients(
                contrastive_loss,
                whole[0][mine],
                whole[1][mine],
                kind,
                group=group,
                tile=2,
                exchange=exchange,
            )
            for part in (found[0], *found[3:]):  # parts of the loss, of the numbers' gradients
                dist.all_reduce(part, group=group)
            known = [expected[0], expected[1][mine], expected[2][mine], *expected[3:]]
            torch.testing.assert_close(found, known, **EXACT)


def check_unequal_upstream(rank: int, group: Any, shares: tuple[int, ...]) -> None:
    """What multiplies one rank's loss belongs to that rank's anchors, wherever its rows are."""
    whole = [z.requires_grad_() for z in embeddings(sum(shares))]
    starts = [sum(shares[:r]) for r in range(len(shares) + 1)]
    scales = torch.tensor([0.5, -2.0, 3.0, 1.0][: len(shares)])
    count = sum(shares)
    pairs = torch.arange(count)
    views = F.normalize(torch.cat(whole), dim=1)
    logits = (views @ views.t() / 0.3).fill_diagonal_(-math.inf)
    targets = torch.cat((pairs + count, pairs))
    scaled = scales.repeat_interleave(torch.tensor(shares)).repeat(2)
    total = (F.cross_entropy(logits, targets, reduction="none") * scaled).sum() / 2
    expected = torch.autograd.grad(total, whole)
    mine = slice(starts[rank], starts[rank + 1])
    own = [z[mine].detach().requires_grad_() for z in whole]
    loss = contrastive_loss(*own, 0.3, group, tile=2) * scales[rank]
    found = torch.autograd.grad(loss, own)
    torch.testing.assert_close(found, tuple(g[mine] for g in expected), **EXACT)


def check_messages(rank: int, count: int) -> None:
    """Bytes that a rank sends: of its rows to each of the others, as ``contrast_ranks`` has it."""
    with groups_of("contrast"):
        group = dist.new_group(backend=BACKEND)
    others = dist.get_world_size() - 1
    a, b = (torch.randn(count, WIDTH, requires_grad=True) for _ in range(2))
    rows = 2 * others * count * WIDTH * 4
    for exchange, backward in (("gather", 0), ("ring", rows)):
        messages.clear()
        loss = contrastive_loss(a, b, 0.1, group, exchange=exchange)
        assert sent() == rows + others * 7 * 8
        messages.clear()
        loss.backward()
        assert sent() == backward + others * 3 * count * 4


def sent() -> int:
    gathers = [m for m in messages if m.kind != "send"]
    parts = sum(m.size // m.ranks * (m.ranks - 1) for m in gathers)
    return parts + sum(m.size for m in messages if m.kind == "send")


def check_refusals(rank: int) -> None:
    a, b = embeddings(4)
    wide, one = torch.ones(4, 2), slice(int(rank == 1))
    for arguments, message in (
        ((a, b, 0.1 + 0.1 * rank), "temperature is 0.1 on rank 0 and 0.2 on rank 1"),
        ((a[:, : 5 - rank], b[:, : 5 - rank], 0.1), "d is 5 on rank 0 and 4 on rank 1"),
        ((wide, wide, 0.1) if rank else (a, b, 0.1), "d is 5 on rank 0"),
        ((a[one], b[one], 0.1), "1 pairs on all ranks: at least 2"),
        ((a, b, rank), "temperature=0" if rank == 0 else "refused the arguments of rank 0"),
    ):
        with pytest.raises(UserError, match=message):
            contrastive_loss(*arguments)
    kind = "ntxent" if rank == 0 else "clip"
    with pytest.raises(UserError, match="kind is ntxent on rank 0 and clip on rank 1"):
        contrastive_loss(a, b, 0.1, kind=kind)
    alone = contrastive_loss(a, b, 0.1, "alone")
    torch.testing.assert_close(alone, whole_matrix(a, b, 0.1, "ntxent", 0.0), **EXACT)


def rank_main(rank: int, folder: Path, size: int) -> None:
    torch.set_num_threads(1)
    register()
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=size
    )
    for ranks in range(1, size + 1):
        group = dist.new_group(list(range(ranks)))
        if rank < ranks:
            check_whole_matrix(rank, group, SHARES[:ranks])
        elif ranks == 1:
            with pytest.raises(UserError, match="this rank is not in group"):
                contrastive_loss(*embeddings(4), 0.1, dist.GroupMember.NON_GROUP_MEMBER)
    for shares in ((0, 5, 2, 9), (4, 4, 4, 4), (3, 0, 0, 0)):
        if sum(shares[:size]) > 1:
            check_whole_matrix(rank, None, shares[:size])
            check_unequal_upstream(rank, None, shares[:size])
    check_messages(rank, 6)
    check_refusals(rank)
    end_group()


@pytest.mark.slow
def test_two_ranks_are_one_process(tmp_path: Path) -> None:
    mp.start_processes(rank_main, (tmp_path, 2), nprocs=2, start_method="forkserver")


@pytest.mark.slow
def test_one_to_four_ranks_are_one_process(tmp_path: Path) -> None:
    mp.start_processes(rank_main, (tmp_path, 4), nprocs=4, start_method="forkserver")


def test_large_batches_go_round_a_ring() -> None:
    assert 2 * 32_768 * 128 * 4 < GATHERED < 2 * 524_288 * 128 * 4
