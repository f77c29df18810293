"""Layers on ranks, each with its own loss: the work of one rank in decoupled greedy learning.

Belilovsky, Eickenberg, Oyallon 2020, algorithm 1. A rank receives a batch's features from the layer
below, sends on its own layer's features, and only then takes its step.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy

from largebatch.lab.descent import accuracy, batches
from largebatch.lab.digits import Samples, digits
from largebatch.lab.greedy import BATCH, RATE, Stage, stages, whole
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
        """Return the features that the layer sends upwards; their graph is kept for the step."""
        self.output = self.stage.features(x)
        return self.output.detach()

    def step(self, targets: Tensor) -> None:
        """Descend the layer's own loss on the batch whose features were asked for last."""
        self.optimizer.param_groups[0]["lr"] = RATE * (1 - self.taken / self.steps)
        self.optimizer.zero_grad()
        cross_entropy(self.stage.head(self.output), targets).backward()
        self.optimizer.step()
        self.taken += 1


def learn(world: World, seeds: list[int], epochs: int) -> list[dict[str, Any]]:
    """Train this rank's layer; rank 0 then trains them all by itself, for comparison."""
    torch.set_num_threads(1)
    train, val, found = digits("train", torch.float64), digits("val", torch.float64), []
    alone(0, world.world_size, list(batches(train, BATCH, 2, 0)))  # what comes late is loaded now
    for seed in seeds:
        taken = list(batches(train, BATCH, epochs * (len(train[1]) // BATCH), seed))
        dist.barrier()
        begun, busy = time.perf_counter(), time.process_time()
        layer = Layer(stages(seed, HIDDEN, world.world_size)[world.rank].double(), len(taken))
        row = {"waits": over_ranks(world, layer, taken), "busy": time.process_time() - busy}
        dist.barrier()
        row["seconds"] = time.perf_counter() - begun
        found.append(row)
        if not world.is_main:
            dist.send(flat(layer.stage), 0)
            continue
        begun, busy = time.perf_counter(), time.process_time()
        together = alone(seed, world.world_size, taken)
        row["seconds alone"] = time.perf_counter() - begun
        row["busy alone"] = time.process_time() - busy
        apart = (flat(together[0]) - flat(layer.stage)).abs().max()
        for rank, stage in enumerate(together[1:], 1):
            theirs = torch.empty_like(flat(stage))
            dist.recv(theirs, rank)
            apart = torch.maximum(apart, (flat(stage) - theirs).abs().max())
        row |= {"apart": float(apart), "accuracy": accuracy(whole(together).eval(), val)}
    return found


def over_ranks(world: World, layer: Layer, taken: list[Samples]) -> float:
    """Take all batches, with a message up for each; return the seconds spent waiting for one."""
    sent: deque[tuple[Any, Tensor]] = deque()
    shape, waits = (BATCH, *below(world)), 0.0
    for images, targets in taken:
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
    """Return the shape of one digit's features from the rank below."""
    x = torch.empty(1, 1, 8, 8)
    with torch.no_grad():
        for stage in stages(0, HIDDEN, world.rank):
            x = stage.features(x)
    return tuple(x.shape[1:])


def alone(seed: int, count: int, taken: list[Samples]) -> list[Stage]:
    """Train all layers at once in one process."""
    layers = [Layer(stage.double(), len(taken)) for stage in stages(seed, HIDDEN, count)]
    for x, targets in taken:
        for layer in layers:
            x = layer.features(x)
        for layer in layers:
            layer.step(targets)
    return [layer.stage for layer in layers]


def flat(stage: Stage) -> Tensor:
    """Return all weights and running statistics as one float64 vector."""
    return torch.cat([value.flatten().double() for value in stage.state_dict().values()])
