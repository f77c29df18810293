"""A discrete simulation of one training step: gradients are exchanged during the backward pass.

There are two streams. The compute stream runs forward, backward and, when every gradient is
reduced, the optimizer. The backward pass completes gradients one after the other. A bucket joins
the queue of the communication stream when its last gradient and all earlier buckets are complete.
The communication stream runs one all-reduce at a time; an all-reduce that has waited may take less
time. If the streams contend (for one host's cores, or a GPU's SMs and memory), both slow down while
both are busy. Events are the moments at which either stream's work changes. Between events rates
are constant, so the simulation is exact for its model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from largebatch._errors import UserError
from largebatch.distributed.bucketing import pack

Collective = Callable[[float], float]
NEGLIGIBLE = 1e-12  # of a stream's work: what rounding leaves of a finished task


@dataclass(frozen=True)
class Compute:
    """A rank's work in a step, without communication.

    Args:
        forward: seconds of the forward pass.
        backward: seconds of the backward pass.
        optimizer: seconds of the optimizer step.
        gradients: for each parameter in the order of exchange: seconds into the backward pass at
            which its gradient is complete, and bytes of the gradient.
    """

    forward: float
    backward: float
    optimizer: float
    gradients: tuple[tuple[float, int], ...]

    @property
    def seconds(self) -> float:
        return self.forward + self.backward + self.optimizer

    def scaled(self, factor: float) -> Compute:
        """Return the same work, all of whose parts take ``factor`` times as long."""
        gradients = tuple((factor * ready, size) for ready, size in self.gradients)
        return Compute(
            factor * self.forward, factor * self.backward, factor * self.optimizer, gradients
        )


@dataclass(frozen=True)
class Contention:
    """The share of speed that each stream loses while the other is busy; the sum is at most 1."""

    compute: float = 0.0
    communication: float = 0.0

    def __post_init__(self) -> None:
        if min(self.compute, self.communication) < 0 or self.compute + self.communication > 1:
            raise UserError(
                f"contention of {self.compute} and {self.communication}: "
                "shares from 0 up, together at most 1"
            )


@dataclass(frozen=True)
class Event:
    """A task on a stream, in seconds from the beginning of the step."""

    stream: str
    name: str
    start: float
    end: float
    bytes: int = 0


@dataclass(frozen=True)
class SimulatedStep:
    """The result of simulating a step.

    Args:
        seconds: from the beginning of the forward pass to the end of the optimizer.
        compute: seconds without communication.
        communication: sum of the all-reduces' seconds, each as if alone.
        events: events in the order of their begin.
    """

    seconds: float
    compute: float
    communication: float
    events: tuple[Event, ...]

    @property
    def exposed(self) -> float:
        """Seconds that communication adds to the step."""
        return self.seconds - self.compute


def bucket(compute: Compute, megabytes: float) -> list[list[int]]:
    """Return the engine's buckets (``engine/bucket.py``) as indices into the gradients."""
    return pack((("", size) for _, size in compute.gradients), megabytes * 1e6)


def simulate(
    compute: Compute,
    buckets: Sequence[Sequence[int]],
    collective: Collective | None,
    overlap: bool = True,
    contention: Contention = Contention(),
    behind: float = 1.0,
) -> SimulatedStep:
    """Simulate one step.

    Args:
        compute: the rank's work.
        buckets: indices into ``compute.gradients``, in the order of exchange.
        collective: seconds of an all-reduce of so many bytes; None on a single rank.
        overlap: whether buckets are sent during the backward pass, not after it.
        contention: slowdown of each stream by the other.
        behind: factor on the seconds of an all-reduce that has waited for another to end. Below 1
            if its begin overlaps with the other's end.
    """
    sizes = [sum(compute.gradients[place][1] for place in places) for places in buckets]
    ready = (max(compute.gradients[place][0] for place in places) for places in buckets)
    # Seconds of backward work after which each bucket may leave, in order.
    due = list(accumulate(ready, max)) if overlap else [compute.backward] * len(sizes)
    costs = [0.0 if collective is None else collective(size) for size in sizes]
    events = [Event("compute", "forward", 0.0, compute.forward)]
    now, done = compute.forward, 0.0
    backward_end = now
    sending, left, began = 0, -1.0, 0.0  # the next bucket; what is left of it, below 0: waiting
    ended = -1.0  # when the last one ended
    while done < compute.backward or sending < len(costs):
        if left < 0 and sending < len(costs) and due[sending] <= done:
            left, began = costs[sending] * (behind if now == ended else 1.0), now
        both = left >= 0 and done < compute.backward
        pace = 1 - contention.compute if both else 1.0
        send = 1 - contention.communication if both else 1.0
        goal = compute.backward
        if left < 0 and sending < len(costs):
            goal = min(due[sending], goal)
        spans = []
        if done < compute.backward and pace > 0:
            spans.append((goal - done) / pace)
        if left >= 0 and send > 0:
            spans.append(left / send)
        span = min(spans)
        now += span
        if done < compute.backward:
            reached = done + span * pace
            done = goal if goal - reached <= NEGLIGIBLE * compute.backward else reached
            backward_end = now
        if left >= 0:
            left -= span * send
            if left <= NEGLIGIBLE * costs[sending]:
                events.append(
                    Event("communication", f"bucket {sending}", began, now, sizes[sending])
                )
                sending, left, ended = sending + 1, -1.0, now
    events.append(Event("compute", "backward", compute.forward, backward_end))
    events.append(Event("compute", "optimizer", now, now + compute.optimizer))
    return SimulatedStep(
        seconds=now + compute.optimizer,
        compute=compute.seconds,
        communication=sum(costs),
        events=tuple(sorted(events, key=lambda event: (event.start, event.end))),
    )
