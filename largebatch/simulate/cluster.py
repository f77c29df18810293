"""The same step on other clusters: every algorithm against node count and batch size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from largebatch._errors import UserError
from largebatch.distributed.bucketing import choose_bucket_mb
from largebatch.distributed.cost_model import CostModel
from largebatch.distributed.grid import Grid
from largebatch.simulate.constants import Device
from largebatch.simulate.methods import Method
from largebatch.simulate.step import Compute, SimulatedStep, bucket, simulate
from largebatch.simulate.trace import Trace

MOST_RANKS = 4096
BATCHES = (8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Prediction:
    """One line of a plan; times in seconds, formulas in :data:`FORMULAS`."""

    nodes: int
    per_node: int
    ranks: int
    batch_per_rank: int
    global_batch: int
    method: str
    bucket_mb: float
    chunks: int
    step_seconds: float
    compute_seconds: float
    communication_seconds: float
    exposed_seconds: float
    efficiency: float
    samples_per_second: float
    flops_bound_seconds: float
    memory_bound_seconds: float
    network_bound_seconds: float
    memory_bytes: float


FORMULAS = """\
step = forward + backward + what communication adds + optimizer, by discrete simulation: a bucket
  leaves when its gradients and all buckets before it are complete, one all-reduce at a time
operator = max(FLOPs / (peak x reached share), bytes / (memory bandwidth x reached share), kernel)
exposed = step - the same step without communication
communication = the sum of the all-reduces, as if each were alone
efficiency = step of one rank alone / step, at the same batch per rank (weak scaling)
samples/s = ranks x batch per rank / step
bounds: FLOPs / peak; bytes of the step's operators / peak memory bandwidth; network: the gradient
  bytes that a host's link must carry, 2 (Y-1)/Y S, or those of a rank, at the links' bandwidth
GB = 12 bytes a parameter (weight, gradient, momentum) + what autograd keeps for the backward pass:
  the least a rank needs; buffers of kernels and of NCCL come on top"""


@dataclass(frozen=True)
class Cluster:
    """The cluster and the model that a plan is made for.

    Args:
        trace: the trace of the model's step.
        device: device of every rank.
        cost: cost model of the links.
        per_node: ranks per host.
        bucket_mb: bucket size of gradient exchange; None takes the best for each case.
        asked_batch: samples per rank that the plan is for.
        samples_per_second: measured rate of one device at ``asked_batch``; scales the compute time
            of every batch by one factor.

    Raises:
        UserError: a measured figure above the device's bound, or a batch beyond its memory.
    """

    trace: Trace
    device: Device
    cost: CostModel
    per_node: int
    bucket_mb: float | None = 25.0
    asked_batch: int = 0
    samples_per_second: float | None = None

    def __post_init__(self) -> None:
        rate, batch = self.samples_per_second, self.asked_batch
        if rate is not None and batch / rate < self.device.flops_bound(self.trace, batch):
            most = batch / self.device.flops_bound(self.trace, batch)
            raise UserError(
                f"--images-per-second {rate:g}: {self.device.name} cannot do more than {most:.0f} "
                f"of this model, by its peak of {self.device.flops / 1e12:g} TFLOP/s"
            )
        if self.asked_batch > self.largest_batch:
            least = self.device.memory(self.trace, self.asked_batch)
            raise UserError(
                f"--batch-per-rank {self.asked_batch}: needs {least / 1e9:,.1f} GB at least of "
                f"{self.device.name}'s {self.device.capacity / 1e9:g}; {self.largest_batch:,} "
                "samples fit, or fewer with what kernels need (--precision, --device)"
            )

    @property
    def largest_batch(self) -> int:
        """Return the largest number of samples that a rank's memory can hold."""
        return self.device.largest_batch(self.trace)

    def compute(self, batch: int) -> Compute:
        """Return a rank's work on ``batch`` samples."""
        own = self.device.compute(self.trace, batch)
        if self.samples_per_second is None:
            return own
        modelled = self.device.compute(self.trace, self.asked_batch).seconds
        return own.scaled(self.asked_batch / self.samples_per_second / modelled)

    def step(self, nodes: int, batch: int, method: Method) -> tuple[SimulatedStep, float]:
        """Simulate a step; return it with the bucket size in MB."""
        compute, grid = self.compute(batch), Grid(nodes, self.per_node)

        def collective(size: float) -> float:
            return method.choose(self.cost, size, grid).seconds

        megabytes = self.bucket_mb
        if megabytes is None:
            size = 4 * self.trace.elements
            megabytes = choose_bucket_mb(size, compute.backward, collective)
        buckets = bucket(compute, megabytes)
        return simulate(compute, buckets, collective if grid.world_size > 1 else None), megabytes

    def predict(self, nodes: int, batch: int, method: Method) -> Prediction:
        """Return a line of the plan."""
        step, megabytes = self.step(nodes, batch, method)
        grid, size = Grid(nodes, self.per_node), 4 * self.trace.elements
        return Prediction(
            nodes=nodes,
            per_node=self.per_node,
            ranks=grid.world_size,
            batch_per_rank=batch,
            global_batch=batch * grid.world_size,
            method=method.name,
            bucket_mb=megabytes,
            chunks=method.choose(self.cost, min(1e6 * megabytes, size), grid).chunks,
            step_seconds=step.seconds,
            compute_seconds=step.compute,
            communication_seconds=step.communication,
            exposed_seconds=step.exposed,
            efficiency=step.compute / step.seconds,
            samples_per_second=batch * grid.world_size / step.seconds,
            flops_bound_seconds=self.device.flops_bound(self.trace, batch),
            memory_bound_seconds=self.device.memory_bound(self.trace, batch),
            network_bound_seconds=self.cost.bound(size, grid, method.wire),
            memory_bytes=self.device.memory(self.trace, batch),
        )

    def scaling(
        self,
        by: Literal["nodes", "batch"],
        nodes: int,
        batch: int,
        methods: Sequence[Method],
    ) -> list[Prediction]:
        """Return the predictions of all methods along node counts or along batches that fit."""
        if by == "nodes":
            points = [(count, batch) for count in node_counts(nodes, self.per_node)]
        else:
            fitting = {size for size in BATCHES if size <= self.largest_batch}
            points = [(nodes, size) for size in sorted({*fitting, batch})]
        return [self.predict(*point, method) for point in points for method in methods]


def node_counts(nodes: int, per_node: int) -> list[int]:
    """Return 1, 2, 4, ... nodes up to 4,096 ranks, with ``nodes`` among them."""
    powers = [2**k for k in range(13) if 2**k * per_node <= MOST_RANKS]
    return sorted({*powers, nodes})


MEASURES = ("step ms", "exposed ms", "comm. ms", "samples/s", "efficiency", "GB")


def figures(p: Prediction) -> tuple[str, ...]:
    """Return a prediction's ``MEASURES`` as text."""
    return (
        f"{1e3 * p.step_seconds:.2f}",
        f"{1e3 * p.exposed_seconds:.2f}",
        f"{1e3 * p.communication_seconds:.2f}",
        f"{p.samples_per_second:,.0f}",
        f"{p.efficiency:.1%}",
        f"{p.memory_bytes / 1e9:.1f}",
    )
