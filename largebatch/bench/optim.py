"""`largebatch bench optim`: one optimizer step on real models' tensors, against other optimizers.

All contenders step the same tensors in turn, in one process, so that disturbances of the machine
affect all alike. The floor is the time for the step's bytes at the bandwidth of a copy, measured in
the same run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import nn

from largebatch.bench.optim_peers import PEERS, Peer, TimedCall
from largebatch.processes import World
from largebatch.processes.freed_memory import keep_freed_memory
from largebatch.processes.group import choose_device
from largebatch.record import BenchmarkRecord

# Bytes of one step a float32 parameter: of SGD read w, g, m and write w, m; LARS reads w and g
# twice; LAMB reads w, g, m, v, writes m, v, reads w, m, v again and writes w.
BYTES = {"sgd": 20, "lars": 28, "adamw": 28, "lamb": 40}
BASES = ("torch SGD, fused", "torch AdamW, fused")
FORMULA = (
    "ms = median over the measurements of a step's time, rounds alternating between all; best = "
    "the least; ratio = ms / ms of torch's fused optimizer of the family (SGD for LARS, AdamW for "
    "LAMB); share = bytes / (ms x copy bandwidth), bytes a float32 parameter: SGD 20, LARS 28, "
    "AdamW 28, LAMB 40"
)


def run(models: list[str], seconds: float, rounds: int) -> BenchmarkRecord:
    """Measure the tensors of models.

    Args:
        models: names in ``MODELS``; none: all.
        seconds: least time of all steps of one contender in one round.
        rounds: number of turns of every contender.
    """
    device = choose_device(World())
    if device.type == "cpu":
        keep_freed_memory()
    bandwidth = _copy_bandwidth(device)
    rows: list[dict[str, Any]] = []
    for name in models or list(MODELS):
        rows += _model(name, MODELS[name](), device, bandwidth, seconds, rounds)
    notes = [
        f"copy bandwidth {bandwidth / 1e9:.1f} GB/s (read and write), {torch.get_num_threads()} "
        f"threads on {device.type}, fp32, contiguous",
        "apex's LAMB and DeepSpeed's have kernels for CUDA alone; DeepSpeed's CPU-Adam is the peer "
        "of an offloaded step, which copies gradients and parameters beside it",
    ]
    return BenchmarkRecord("optim", FORMULA, rows, notes=notes)


def _resnet50() -> list[tuple[int, ...]]:
    from torchvision.models import resnet50

    with torch.device("meta"):
        return [tuple(param.shape) for param in resnet50().parameters()]


def _vit_b() -> list[tuple[int, ...]]:
    from torchvision.models import vit_b_16

    with torch.device("meta"):
        return [tuple(param.shape) for param in vit_b_16().parameters()]


def _bert_large() -> list[tuple[int, ...]]:
    """Devlin et al. 2019: 24 layers, width 1024, 30,522 tokens, 512 positions, two segments."""
    width, inner = 1024, 4096
    shapes: list[tuple[int, ...]] = [(30522, width), (512, width), (2, width), (width,), (width,)]
    for _ in range(24):
        shapes += [(width, width), (width,)] * 4 + [(width,)] * 2
        shapes += [(inner, width), (inner,), (width, inner), (width,)] + [(width,)] * 2
    return [*shapes, (width, width), (width,)]


MODELS: dict[str, Callable[[], list[tuple[int, ...]]]] = {
    "resnet50": _resnet50,
    "vit_b_16": _vit_b,
    "bert_large": _bert_large,
}


def _model(
    name: str,
    shapes: list[tuple[int, ...]],
    device: torch.device,
    bandwidth: float,
    seconds: float,
    rounds: int,
) -> list[dict[str, Any]]:
    """Measure all contenders on one model's tensors."""
    generator = torch.Generator(device).manual_seed(0)

    def tensors(scale: float) -> list[torch.Tensor]:
        return [scale * torch.randn(s, generator=generator, device=device) for s in shapes]

    params = [nn.Parameter(tensor) for tensor in tensors(0.05)]
    for param, grad in zip(params, tensors(0.01), strict=True):
        param.grad = grad
    count = sum(param.numel() for param in params)
    rows: list[dict[str, Any]] = []
    for family in (("sgd", "lars"), ("adamw", "lamb")):
        times, absent = _alternate(
            [p for p in PEERS if p.family in family], params, seconds, rounds
        )
        base = next(median(found) for peer, found in times.items() if peer.name in BASES)
        for peer, found in times.items():
            middle = median(found)
            rows.append(
                {
                    "tensors": name,
                    "optimizer": peer.name,
                    "ms": round(1e3 * middle, 2),
                    "best": round(1e3 * min(found), 2),
                    "ratio": round(middle / base, 3),
                    "share": round(BYTES[peer.family] * count / (middle * bandwidth), 3),
                    "steps": len(found),
                }
            )
        rows += [
            {"tensors": name, "optimizer": peer.name, "not run": reason}
            for peer, reason in absent.items()
        ]
    return rows


def _alternate(
    peers: list[Peer], params: list[nn.Parameter], seconds: float, rounds: int
) -> tuple[dict[Peer, list[float]], dict[Peer, str]]:
    """Return the times of all steps of those that run, and the reasons of those that do not."""
    absent: dict[Peer, str] = {}
    times: dict[Peer, list[float]] = {}
    clean = [param.grad.clone() for param in params if param.grad is not None]
    for number in range(rounds):
        present = [peer for peer in peers if peer not in absent]
        for peer in present if number % 2 == 0 else present[::-1]:
            try:
                times.setdefault(peer, []).extend(_turn(peer, params, clean, seconds))
            except Exception as error:  # whatever a peer may raise is its reason
                absent[peer] = " ".join(f"{type(error).__name__}: {error}".split())[:120]
                del times[peer]
    return times, absent


def _turn(
    peer: Peer, params: list[nn.Parameter], clean: list[torch.Tensor], seconds: float
) -> list[float]:
    """Return the times of a contender's steps; gradients are ``clean`` before and after.

    Its state is made here, by a step that does not count, and freed after it: that of all at once,
    on BERT-Large's tensors, would take 24 GiB.
    """
    step = peer.make(params)
    step()
    grads = [param.grad for param in params if param.grad is not None]
    writes = not all(map(torch.equal, grads, clean))  # which would spoil everybody's next step
    found = []
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        if writes:
            torch._foreach_copy_(grads, clean)
        found.append(_time(step, params[0].device))
    if writes:
        torch._foreach_copy_(grads, clean)
    return found


def _time(step: TimedCall, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def _copy_bandwidth(device: torch.device) -> float:
    """Return the bytes a second, read and written, of a copy of 256 MiB, the best of twenty."""
    source = torch.ones(64 * 1024 * 1024, device=device)
    target = torch.empty_like(source)
    best = min(_time(lambda: target.copy_(source), device) for _ in range(20))
    return 2 * source.numel() * source.element_size() / best
