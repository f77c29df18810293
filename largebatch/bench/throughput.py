"""Time training steps in turn: ours by the trainer, others as their users run them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from largebatch.processes import World
from largebatch.processes.lifetime import StopRequest
from largebatch.record import MetricsWriter, RunDirectory
from largebatch.train.build import build
from largebatch.train.config import Config
from largebatch.train.step_times import PHASES, StepTimes
from largebatch.train.trainer import Trainer

WARM_UP = 2


@dataclass
class Contender:
    """One way to train.

    Attributes:
        images: images in a step over all ranks; for text, tokens.
        step: takes a training step.
        model: the trained model.
        times: the phases of its steps' time, if it is our trainer.
        settle: waits until the times of all steps taken are known.
        phases: seconds a step of each phase, a row a window; without ``times`` no rows.
    """

    name: str
    images: int
    step: Callable[[], object]
    model: nn.Module
    times: StepTimes | None = None
    settle: Callable[[], object] = lambda: None
    phases: list[dict[str, float]] = field(default_factory=list)

    def begin(self) -> None:
        """Begin a window: what was measured before does not count."""
        if self.times is not None:
            self.settle()
            self.times.totals, self.times.steps = dict.fromkeys(PHASES, 0.0), 0

    def end(self) -> None:
        """End a window."""
        if self.times is not None:
            self.settle()
            totals = self.times.totals
            self.phases.append({phase: totals[phase] / self.times.steps for phase in PHASES})


def trainer(
    name: str, config: Config, world: World, device: torch.device, folder: Path | None = None
) -> Contender:
    """Return our own trainer's step for the run in ``config``.

    Args:
        folder: where rank 0 writes the lines of metrics.jsonl, as in any run; None: nowhere.
    """
    parts = build(config, world, device)
    directory = RunDirectory(folder or Path("unused"))
    made = Trainer(config, parts, directory, StopRequest())
    if folder is not None and world.is_main:
        made.telemetry.open((MetricsWriter(directory.metrics),))
    parts.model.train()

    def steps() -> Iterator[None]:
        while True:
            for share in parts.feed.shares(0):
                made.step(share)
                yield

    walk = steps()
    times = parts.stepper.times
    settle = made.ledger.settle
    return Contender(name, config.batch.size, lambda: next(walk), parts.model, times, settle)


def plain(
    name: str,
    model: nn.Module,
    batch: Callable[[], tuple[Tensor, Tensor]],
    images: int,
    precision: torch.dtype,
    metrics: bool,
) -> Contender:
    """Return the step of a plain loop, as in torchvision's reference and timm's script.

    Args:
        model: DistributedDataParallel or the bare model.
        batch: yields normalised images and labels on the device.
        images: images in a step over all ranks.
        precision: bfloat16 runs under autocast.
        metrics: whether top-1 and top-5 are computed and read in every step.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    model.train()

    def step() -> None:
        inputs, targets = batch()
        cast = precision != torch.float32
        with torch.autocast(inputs.device.type, dtype=precision, enabled=cast):
            logits = model(inputs)
            loss = cross_entropy(logits, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if metrics:
            right = logits.detach().topk(5).indices == targets[:, None]
            (float(loss.detach()), float(right[:, :1].sum()), float(right.sum()))

    return Contender(name, images, step, model)


def windows(
    contenders: Sequence[Contender], seconds: float, rounds: int, world: World
) -> dict[str, list[float]]:
    """Return images/s of every contender's windows; ranks in step, contenders in turn.

    Each window has enough steps to last about ``seconds``, at least two. The phases of our own
    steps are those of the same windows.
    """
    device = next(contenders[0].model.parameters()).device
    counts = {}
    for contender in contenders:
        for _ in range(WARM_UP):
            contender.step()
        synchronize(device)
        begun = time.perf_counter()
        contender.step()
        synchronize(device)
        wanted = max(2, round(seconds / (time.perf_counter() - begun)))
        agreed = torch.tensor(wanted, device=device)
        if world.world_size > 1:
            dist.broadcast(agreed, 0)
        counts[contender.name] = int(agreed)
    found: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for number in range(rounds):
        for contender in contenders if number % 2 == 0 else contenders[::-1]:
            count = counts[contender.name]
            contender.begin()
            if world.world_size > 1:
                dist.barrier()
            begun = time.perf_counter()
            for _ in range(count):
                contender.step()
            synchronize(device)
            spent = time.perf_counter() - begun
            contender.end()
            found[contender.name].append(count * contender.images / spent)
    return found


def spread(values: Sequence[float], unit: str = "images/s") -> dict[str, float]:
    """Return median, p5 and p95 of a rate; for few windows the last two are the extremes."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return {
        unit: round(median(ordered), 2),
        "p5": round(ordered[round(0.05 * last)], 2),
        "p95": round(ordered[round(0.95 * last)], 2),
    }


def breakdown(contender: Contender, rates: Sequence[float]) -> dict[str, float]:
    """Return the milliseconds of each phase in the window of the median rate; empty for others."""
    if not contender.phases:
        return {}
    order = sorted(range(len(rates)), key=rates.__getitem__)
    middle = contender.phases[order[(len(order) - 1) // 2]]
    return {f"{phase} ms": round(1e3 * seconds, 1) for phase, seconds in middle.items()}


def synchronize(device: torch.device) -> None:
    """Wait for a GPU's work; does nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
