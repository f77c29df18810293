"""Decoupled greedy learning over ranks: each holds a layer, and none waits for a gradient.

Belilovsky, Eickenberg, Oyallon 2020, "Decoupled greedy learning of CNNs", algorithm 1: a layer
trains under its own classifier on what the layer below has just sent. Messages go upwards alone, so
the ranks work on several batches at once: a pipeline without a way back.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from largebatch.lab.digits import Digits
from largebatch.lab.experiment import (
    Check,
    Experiment,
    Findings,
    Scale,
    agreed,
    experiments,
    spread,
)
from largebatch.lab.greedy import BATCH, NEAR, RATE, Stage, end_to_end, held_out, stages
from largebatch.lab.paired import exceeds
from largebatch.lab.pictures import Series, lines
from largebatch.lab.ranks import on_ranks
from largebatch.optim import SGD
from largebatch.processes import World

HIDDEN = 1  # convolutions of each classifier: k = 2
AHEAD = 4  # batches that a rank may be ahead of the one above it


class Layer:
    """A stage and its optimizer."""

    def __init__(self, stage: Stage, steps: int) -> None:
        self.stage, self.steps, self.taken = stage, steps, 0
        self.optimizer = SGD(stage.parameters(), lr=RATE, momentum=0.9)

    def features(self, x: Tensor) -> Tensor:
        """Return what the layer sends upwards; its graph is kept for the step."""
        self.output = self.stage.features(x)
        return self.output.detach()

    def step(self, targets: Tensor) -> None:
        """Descend the layer's own loss on the batch whose features were asked for last."""
        self.optimizer.param_groups[0]["lr"] = RATE * (1 - self.taken / self.steps)
        self.optimizer.zero_grad()
        torch.nn.functional.cross_entropy(self.stage.head(self.output), targets).backward()
        self.optimizer.step()
        self.taken += 1


def learn(world: World, seeds: list[int], epochs: int) -> list[dict[str, Any]]:
    """Train this rank's layer; rank 0 then trains them all by itself, for comparison."""
    torch.set_num_threads(1)
    digits, found = Digits.load(torch.float64), []
    alone(0, world.world_size, digits.batches(0, BATCH, 1)[:2])  # what comes late is loaded now
    for seed in seeds:
        batches = digits.batches(seed, BATCH, epochs)
        dist.barrier()
        begun, busy = time.perf_counter(), time.process_time()
        layer = Layer(stages(seed, HIDDEN, world.world_size)[world.rank].double(), len(batches))
        row = {"waits": over_ranks(world, layer, batches), "busy": time.process_time() - busy}
        dist.barrier()
        row["seconds"] = time.perf_counter() - begun
        found.append(row)
        if not world.is_main:
            dist.send(flat(layer.stage), 0)
            continue
        begun, busy = time.perf_counter(), time.process_time()
        together = alone(seed, world.world_size, batches)
        row["seconds alone"] = time.perf_counter() - begun
        row["busy alone"] = time.process_time() - busy
        apart = (flat(together[0]) - flat(layer.stage)).abs().max()
        for rank, stage in enumerate(together[1:], 1):
            theirs = torch.empty_like(flat(stage))
            dist.recv(theirs, rank)
            apart = torch.maximum(apart, (flat(stage) - theirs).abs().max())
        row |= {"apart": float(apart), "accuracy": held_out(digits, together)}
    return found


def over_ranks(world: World, layer: Layer, batches: list[tuple[Tensor, Tensor]]) -> float:
    """Take all batches, with a message up for each; return the seconds spent waiting for one."""
    sent: deque[tuple[Any, Tensor]] = deque()
    shape, waits = (BATCH, *below(world)), 0.0
    for images, targets in batches:
        x = images
        if world.rank > 0:
            x, begun = torch.empty(shape, dtype=images.dtype), time.perf_counter()
            dist.recv(x, world.rank - 1)
            waits += time.perf_counter() - begun
        up = layer.features(x)
        if world.rank < world.world_size - 1:
            if len(sent) == AHEAD:
                sent.popleft()[0].wait()
            sent.append((dist.isend(up, world.rank + 1), up))
        layer.step(targets)
    for work, _ in sent:
        work.wait()
    return waits


def below(world: World) -> tuple[int, ...]:
    """Return the shape of what the rank below sends of one digit."""
    x = torch.empty(1, 1, 8, 8)
    with torch.no_grad():
        for stage in stages(0, HIDDEN, world.rank):
            x = stage.features(x)
    return tuple(x.shape[1:])


def alone(seed: int, count: int, batches: list[tuple[Tensor, Tensor]]) -> list[Stage]:
    """Train all layers at once in one process."""
    layers = [Layer(stage.double(), len(batches)) for stage in stages(seed, HIDDEN, count)]
    for x, targets in batches:
        for layer in layers:
            x = layer.features(x)
        for layer in layers:
            layer.step(targets)
    return [layer.stage for layer in layers]


def flat(stage: Stage) -> Tensor:
    """Return all weights and running statistics as one float64 vector."""
    return torch.cat([value.flatten().double() for value in stage.state_dict().values()])


@experiments.register("dgl")
class DecoupledGreedyLearning(Experiment):
    """Two (quick) or three convolutions on as many real ranks, beside one process and backprop."""

    lecture = "Training in practice (lecture 3), optional: Local Parallel Learning"
    claim = "Simultaneously minimize each layer's own loss: strong results without end-to-end"
    source = "Belilovsky et al. 2020, algorithm 1"
    minutes = 1.0

    def measure(self, scale: Scale) -> Findings:
        """Compare weights and work with one process's, and accuracy with backpropagation."""
        count, epochs = scale.pick(2, 3), scale.pick(1, 12)
        ranks = on_ranks(count, learn, list(scale.seeds), epochs)
        digits, rows = Digits.load(), []
        for number, seed in enumerate(scale.seeds):
            runs = [rank[number] for rank in ranks]
            rows.append({
                "seed": seed, "ranks": count, "accuracy": round(runs[0]["accuracy"], 4),
                "backprop": round(end_to_end(digits, seed, HIDDEN, epochs, count), 4),
                "seconds": round(runs[0]["seconds"], 2),
                "seconds of one process": round(runs[0]["seconds alone"], 2),
                "share waiting": round(max(r["waits"] / r["seconds"] for r in runs), 3),
                "work over the busiest rank's": round(
                    runs[0]["busy alone"] / max(r["busy"] for r in runs), 2
                ),
            })  # fmt: skip
        ours, theirs = ([float(row[key]) for row in rows] for key in ("accuracy", "backprop"))
        shares = [float(row["work over the busiest rank's"]) for row in rows]
        apart = max(row["apart"] for row in ranks[0])
        checks = [
            Check("weights over ranks and in one process", "equal", f"{apart:.1e} apart",
                  apart < 1e-9, exact=True),
            Check("accuracy as good as backpropagation's, to 1 point", "yes",
                  f"{spread(ours)} against {spread(theirs)}",
                  exceeds(ours, theirs, -NEAR)),
            Check(f"processor time of one process over that of the busiest of {count} ranks",
                  "above 1: the work is divided", spread(shares),
                  agreed(factor > 1 for factor in shares)),
        ]  # fmt: skip
        bars = [Series(key, list(scale.seeds), [float(row[key]) for row in rows], mode="markers")
                for key in ("accuracy", "backprop")]  # fmt: skip
        note = "each seed: layers on their own over ranks, and trained as one"
        picture = lines("seed", "held-out accuracy", bars)
        return Findings(checks, rows, [("Local losses and backpropagation", note, picture)], [
            "a rank sends its features upwards and receives no gradient; it may be "
            f"{AHEAD} batches ahead of the rank above",
            "seconds are of this machine as it was; processor time does not depend on its load",
        ])  # fmt: skip
