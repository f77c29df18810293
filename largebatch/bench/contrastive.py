"""`largebatch bench contrastive`: the loss by tiles against the loss by the whole logit matrix.

Time and bytes are measured at a batch whose matrix fits, on one rank and on several. Peak memory is
measured at a batch whose matrix does not fit, each contender in its own process.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from largebatch._cores import usable_cores
from largebatch.bench import contrastive_peers as peers
from largebatch.bench.messages import BACKEND, messages, register
from largebatch.nn import contrastive_loss
from largebatch.nn.contrast_arguments import TILES
from largebatch.nn.contrast_tiles import KINDS as KINDS
from largebatch.processes import World
from largebatch.processes.ending import end_group
from largebatch.processes.group import choose_device
from largebatch.record import BenchmarkRecord, json_text

FORMULA = (
    "ms = loss, forward and backward to the embeddings, median over rounds, contenders alternating;"
    " times matrix = median over rounds of (ms / the whole matrix's in the same round); peak MB ="
    " the most memory while loss and gradients are computed, less that of the process without the"
    " embeddings; times least = peak MB / (embeddings + their gradients + one tile of logits);"
    " sent KB = what a rank sends in a step, by the collectives it took part in: of a gather W-1 of"
    " W parts of its result, of an all-reduce twice that; formula KB = largebatch.nn.contrast_ranks"
    " (MB = 1000 KB = 10^6 bytes)"
)
WIDTH, TEMPERATURE = 128, 0.1
PAIRS, MANY_PAIRS = 2048, 32_768
OURS, MATRIX = "largebatch", "whole matrix"
ROOM = 0.5  # of free memory, which a whole matrix may take here
Losses = dict[str, peers.Loss]


def run(
    rounds: int,
    pairs: Sequence[int] = (PAIRS,),
    ranks: Sequence[int] = (1, 2),
    held: Sequence[int] = (PAIRS, MANY_PAIRS),
    width: int = WIDTH,
    kinds: Sequence[str] = tuple(KINDS),
) -> BenchmarkRecord:
    """Measure times and bytes, and peak memory.

    Args:
        rounds: alternating rounds.
        pairs: pairs of a step on all ranks, for times.
        ranks: numbers of ranks; several ranks run on this machine over gloo, with one thread each.
        held: pairs of one rank, for peak memory.
        width: numbers of an embedding.
        kinds: kinds of losses; several ranks take NT-Xent only.
    """
    device = choose_device(World())
    rows: list[dict[str, Any]] = []
    for count in pairs:
        for size in ranks:
            if size == 1:
                rows += [
                    row for kind in kinds for row in _one_rank(kind, count, width, device, rounds)
                ]
            else:
                rows += _spawned(_rank_main, size, rounds, count // size, width)
    for count in held:
        for kind in kinds:
            rows += _memory(kind, count, width, device)
    notes = [
        f"float32, embeddings of {width} numbers, temperature {TEMPERATURE}, on {device.type};"
        f" {rounds} rounds; ranks are gloo ranks with one thread each on {usable_cores()} cores",
        "whole matrix: torch's own operators on all logits; over ranks all views are gathered, and"
        " an all-reduce sums the gradients of all of them, as in solo-learn",
    ]
    return BenchmarkRecord("contrastive", FORMULA, rows, notes=notes)


def ours(kind: str, **options: Any) -> peers.Loss:
    """Return our loss as a mean over the pairs of all ranks."""
    size = dist.get_world_size() if dist.is_initialized() else 1

    def loss(a: Tensor, b: Tensor) -> Tensor:
        summed = contrastive_loss(a, b, TEMPERATURE, kind=kind, **options)  # type: ignore[arg-type]
        return summed / (len(a) * size)

    return loss


def contenders(kind: str, count: int, device: torch.device) -> tuple[Losses, dict[str, str]]:
    """Return the contenders for this kind on one rank, and the reasons why others are missing."""
    losses: Losses = {MATRIX: peers.whole_matrix(kind, TEMPERATURE), OURS: ours(kind)}
    absent = {}
    for name, peer in peers.PEERS.items() if kind == "ntxent" else ():
        if peer.memory(count) > ROOM * _free(device):
            absent[name] = f"matrices of {peer.memory(count) / 1e9:.0f} GB"
            continue
        try:
            losses[name] = peer.make(TEMPERATURE)
        except ImportError as error:
            absent[name] = str(error)
    return losses, absent


def embeddings(count: int, width: int, device: torch.device, seed: int = 0) -> list[Tensor]:
    """Return two leaves of (count, width)."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(2, count, width, generator=generator).to(device)
    return [z.clone().requires_grad_() for z in drawn]


def _one_rank(
    kind: str, count: int, width: int, device: torch.device, rounds: int
) -> list[dict[str, Any]]:
    losses, absent = contenders(kind, count, device)
    inputs = embeddings(count, width, device)
    case = {"kind": kind, "pairs": count, "ranks": 1}
    rows = [
        {"contender": name, **case, **found}
        for name, found in _times(losses, inputs, rounds, lambda: _wait(device)).items()
    ]
    return rows + [{"contender": n, **case, "ms": f"not run: {why}"} for n, why in absent.items()]


def _times(
    losses: Losses, inputs: list[Tensor], rounds: int, wait: Callable[[], object]
) -> dict[str, dict[str, float]]:
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    for number in range(rounds + 1):
        for name in list(losses) if number % 2 == 0 else list(losses)[::-1]:
            wait()
            begun = time.perf_counter()
            torch.autograd.grad(losses[name](*inputs), inputs)
            wait()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - begun)
    return {
        name: {
            "ms": round(1e3 * median(own), 1),
            "times matrix": round(
                median(a / b for a, b in zip(own, seconds[MATRIX], strict=True)), 2
            ),
        }
        for name, own in seconds.items()
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _spawned(main: Callable[..., None], size: int, *arguments: Any) -> list[dict[str, Any]]:
    """Run ``main`` in processes of its own; return the rows that its rank 0 writes."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(main, (Path(folder), size, *arguments), nprocs=size)
        rows: list[dict[str, Any]] = json.loads((Path(folder) / "rows.json").read_text())
    return rows


def _rank_main(rank: int, folder: Path, size: int, rounds: int, count: int, width: int) -> None:
    torch.set_num_threads(1)
    register()
    dist.init_process_group(
        BACKEND, init_method=f"file://{folder / 'store'}", rank=rank, world_size=size
    )
    inputs = embeddings(count, width, torch.device("cpu"), seed=rank)
    losses: Losses = {
        MATRIX: peers.gathered_matrix(TEMPERATURE),
        f"{OURS}, gather": ours("ntxent", exchange="gather"),
        f"{OURS}, ring": ours("ntxent", exchange="ring"),
    }
    case, absent = {"kind": "ntxent", "pairs": count * size, "ranks": size}, {}
    try:
        losses["lightly's NTXentLoss"] = peers.lightly(TEMPERATURE, over_ranks=True)
    except ImportError as error:
        absent["lightly's NTXentLoss"] = str(error)
    sent = {}
    for name, loss in losses.items():
        messages.clear()
        torch.autograd.grad(loss(*inputs), inputs)
        sent[name] = sum(_sent(message.kind, message.size, size) for message in messages)
    rows = []
    for name, found in _times(losses, inputs, rounds, lambda: dist.barrier()).items():
        row = {"contender": name, **case, **found, "sent KB": round(sent[name] / 1e3, 1)}
        if name.startswith(OURS):
            backward = 2 * count * width if name.endswith("ring") else 0
            formula = (size - 1) * (4 * (2 * count * width + backward + 3 * count) + 7 * 8)
            row["formula KB"] = round(formula / 1e3, 1)
        rows.append(row)
    rows += [{"contender": n, **case, "ms": f"not run: {why}"} for n, why in absent.items()]
    if rank == 0:
        (folder / "rows.json").write_text(json_text(rows))
    dist.barrier()
    end_group()


def _sent(kind: str, size: int, ranks: int) -> float:
    """Return the bytes that a rank sends in a collective whose result has ``size`` bytes."""
    if kind == "send":
        return size
    return size / ranks * (ranks - 1) * (2 if kind == "allreduce" else 1)


def _memory(kind: str, count: int, width: int, device: torch.device) -> list[dict[str, Any]]:
    side = min(count, TILES.get(device.type, 4096))
    least = 4 * (4 * count * width + side * side)
    views = 2 * count if kind == "ntxent" else count
    rows = []
    for name in (MATRIX, OURS):
        row: dict[str, Any] = {"contender": name, "kind": kind, "pairs": count, "ranks": 1}
        logits = 4 * views * views
        if name == MATRIX and 4 * logits > ROOM * _free(device):
            rows.append(row | {"peak MB": f"not run: logits of {logits / 1e9:.1f} GB"})
            continue
        (found,) = _spawned(_memory_main, 1, name, kind, count, width, device.type)
        peak = found["peak"]
        rows.append(row | {"peak MB": round(peak / 1e6, 1), "times least": round(peak / least, 2)})
    return rows


def _memory_main(
    rank: int, folder: Path, size: int, name: str, kind: str, count: int, width: int, type: str
) -> None:
    device = torch.device(type)
    loss = ours(kind) if name == OURS else peers.whole_matrix(kind, TEMPERATURE)
    small = embeddings(64, width, device)
    loss(*small).backward()  # libraries and their pools come to memory
    before = _resident(device, "VmRSS")
    inputs = embeddings(count, width, device)
    _forget_peak(device)
    loss(*inputs).backward()
    peak = _resident(device, "VmHWM") - before
    (folder / "rows.json").write_text(json_text([{"peak": peak}]))


def _resident(device: torch.device, name: str) -> int:
    """Return the bytes of memory in use now (VmRSS) or at most (VmHWM)."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        now, most = torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
        return now if name == "VmRSS" else most
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew (proc(5))


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)
