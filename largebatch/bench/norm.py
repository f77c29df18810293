"""`largebatch bench norm`: forward and backward of batch norms, against torch's usual forms.

Every contender is called as by a user, through autograd, on the same tensors, in turn within each
round. The floor is the time of torch's own loops for the least reads and writes of a norm.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from largebatch.bench import norm_peers
from largebatch.nn import GhostBatchNorm, L1BatchNorm, LInfBatchNorm, TopKBatchNorm
from largebatch.processes import World
from largebatch.processes.group import choose_device
from largebatch.record import BenchmarkRecord

FORMULA = (
    "forward, backward: milliseconds, median over rounds; times baseline = median over rounds of "
    "(baseline's forward + backward / the contender's, same round), the baseline being torch's "
    "BatchNorm2d followed by the same ReLU or addition and ReLU; over floor = median over rounds "
    "of (its forward + backward / the floor's); floor = torch.mul(x, 2) or x.clone(), the faster, "
    "+ torch.add(x, dy): reads x, writes y; reads x and dy, writes dx"
)
GHOST = 32
# ResNet-50 with images of 224: channels and side of its batch norms, a large one of each stage.
SHAPES = ((64, 56), (256, 56), (512, 28), (1024, 14), (2048, 7))
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass
class Contender:
    """One form: its forward, what has gradients besides x, and the name of its baseline."""

    forward: norm_peers.Forward
    parameters: list[Tensor]
    baseline: str
    residual: bool = False


def run(rounds: int, batch: int | None = None, shapes: Any = SHAPES) -> BenchmarkRecord:
    """Measure every shape in both layouts.

    Args:
        rounds: alternating rounds, each contender once in each.
        batch: samples; None: 64 on a CPU, 256 on a GPU.
        shapes: (channels, side) of the inputs.
    """
    device = choose_device(World())
    batch = batch or (64 if device.type == "cpu" else 256)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    rows = []
    for channels, side in shapes:
        for layout, memory_format in LAYOUTS.items():
            x, grad, residual = (
                torch.randn(batch, channels, side, side, device=device, dtype=dtype).contiguous(
                    memory_format=memory_format
                )
                for _ in range(3)
            )
            case = {"shape": "x".join(map(str, x.shape)), "layout": layout}
            rows += [{**case, **row} for row in _measure(x, grad, residual, rounds)]
            del x, grad, residual
    notes = [
        f"{str(dtype).removeprefix('torch.')}, ghosts of {GHOST} samples, {rounds} rounds",
        "allocator: "
        + (
            "MALLOC_MMAP_MAX_=0: freed memory is used again"
            if os.environ.get("MALLOC_MMAP_MAX_") == "0"
            else "as the process found it: large outputs may be fresh pages"
        ),
        "not run: SyncBatchNorm, which needs several ranks and a GPU; attorch and FlagGems, "
        "whose Triton batch norms need a GPU",
    ]
    if device.type == "cpu":
        notes.append("not measured: GPU figures, no GPU could be had")
    return BenchmarkRecord("norm", FORMULA, rows, notes=notes)


def _contenders(x: Tensor, residual: Tensor) -> tuple[dict[str, Contender], dict[str, str]]:
    """Return who takes part, and why the others do not."""
    batch, channels = x.shape[:2]
    ghost = min(GHOST, batch)
    made: dict[str, Contender] = {}

    def enter(
        name: str, norm: nn.Module, baseline: str, forward: norm_peers.Forward | None = None
    ) -> None:
        norm.to(x.device)
        made[name] = Contender(
            forward or (lambda x, _: norm(x)),
            list(norm.parameters()),
            baseline,
            residual=baseline.endswith("add + ReLU"),
        )

    plain = nn.BatchNorm2d(channels)
    enter("torch", plain, "torch")
    enter("largebatch, one ghost", GhostBatchNorm(channels, batch), "torch")
    enter("largebatch ghost", GhostBatchNorm(channels, ghost), "torch")
    enter("largebatch L1 ghost", L1BatchNorm(channels, ghost), "torch")
    enter("largebatch L-infinity ghost", LInfBatchNorm(channels, ghost), "torch")
    enter("largebatch top-10 ghost", TopKBatchNorm(channels, ghost), "torch")
    enter("chunk and cat", norm_peers.ChunkAndCat(channels, ghost), "torch")
    enter("reshaped ghosts", norm_peers.ReshapedGhosts(channels, ghost), "torch")
    enter("eager L1", norm_peers.EagerL1(channels), "torch")
    enter("torch + ReLU", plain, "torch + ReLU", lambda x, _: torch.relu(plain(x)))
    enter(
        "largebatch ghost + ReLU",
        GhostBatchNorm(channels, ghost, activation="relu"),
        "torch + ReLU",
    )
    enter(
        "torch + add + ReLU",
        plain,
        "torch + add + ReLU",
        lambda x, r: torch.relu(plain(x) + r),
    )
    fused = GhostBatchNorm(channels, ghost, activation="relu")
    enter("largebatch ghost + add + ReLU", fused, "torch + add + ReLU", lambda x, r: fused(x, r))
    absent = {}
    if channels == SHAPES[0][0]:  # compiling takes longer than measuring: one shape shows it
        try:
            form = norm_peers.compiled_add_relu(plain, x.clone().requires_grad_(), residual)
            enter("torch.compile + add + ReLU", plain, "torch + add + ReLU", form)
        except Exception as error:  # whatever a compiler may lack
            reason = str(error).strip().splitlines() or [type(error).__name__]
            absent["torch.compile + add + ReLU"] = reason[0][:200]
    return made, absent


def _measure(x: Tensor, grad: Tensor, residual: Tensor, rounds: int) -> list[dict[str, Any]]:
    contenders, absent = _contenders(x, residual)
    x, residual = x.requires_grad_(), residual.requires_grad_()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    floors: list[tuple[float, float]] = []
    for number in range(rounds + 1):
        order = list(contenders) if number % 2 == 0 else list(contenders)[::-1]
        found = {name: _time(contenders[name], x, grad, residual) for name in order}
        floor = _floor(x.detach(), grad)
        if number == 0:
            continue  # warms up
        for name, pair in found.items():
            times[name].append(pair)
        floors.append(floor)
    rows = [
        {
            "contender": "floor",
            "forward ms": round(1e3 * median(f for f, _ in floors), 2),
            "backward ms": round(1e3 * median(b for _, b in floors), 2),
        }
    ]
    bottom = [sum(pair) for pair in floors]
    for name, contender in contenders.items():
        total = [sum(pair) for pair in times[name]]
        base = [sum(pair) for pair in times[contender.baseline]]
        rows.append(
            {
                "contender": name,
                "forward ms": round(1e3 * median(f for f, _ in times[name]), 2),
                "backward ms": round(1e3 * median(b for _, b in times[name]), 2),
                "baseline": contender.baseline,
                "times baseline": round(_ratio(base, total), 2),
                "over floor": round(_ratio(total, bottom), 2),
            }
        )
    return rows + [
        {"contender": name, "forward ms": f"not run: {why}"} for name, why in absent.items()
    ]


def _ratio(above: list[float], below: list[float]) -> float:
    return median(a / b for a, b in zip(above, below, strict=True))


def _time(contender: Contender, x: Tensor, grad: Tensor, residual: Tensor) -> tuple[float, float]:
    """Return the seconds of one forward and of one backward."""
    wanted = [x, *contender.parameters, *([residual] if contender.residual else [])]
    _wait()
    begun = time.perf_counter()
    y = contender.forward(x, residual)
    _wait()
    between = time.perf_counter()
    torch.autograd.grad(y, wanted, grad)
    _wait()
    return between - begun, time.perf_counter() - between


def _floor(x: Tensor, grad: Tensor) -> tuple[float, float]:
    def seconds(call: Callable[[], Tensor]) -> float:
        _wait()
        begun = time.perf_counter()
        call()
        _wait()
        return time.perf_counter() - begun

    forward = min(seconds(lambda: torch.mul(x, 2)), seconds(x.clone))
    return forward, seconds(lambda: torch.add(x, grad))


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
