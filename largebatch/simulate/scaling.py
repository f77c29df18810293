"""The same step on other clusters: every algorithm against node count and batch size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from largebatch._errors import UserError
from largebatch.distributed.bucketing import choose_bucket_mb
from largebatch.distributed.cost_model import CHUNKS, Algorithm, Choice, CostModel, Wire
from largebatch.distributed.grid import Grid
from largebatch.simulate.constants import Device
from largebatch.simulate.step import Compute, Step, bucket, simulate
from largebatch.simulate.trace import Trace

MOST_RANKS = 4096
BATCHES = (8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Method:
    """A way to exchange gradients: what may be chosen for each message.

    Args:
        name: as shown.
        algorithms: one, or those that ``auto`` chooses from.
        wire: type between hosts.
        chunks: of the torus.
    """

    name: str
    algorithms: tuple[Algorithm, ...]
    wire: Wire = "fp32"
    chunks: tuple[int, ...] = CHUNKS

    def choose(self, cost: CostModel, bytes: float, grid: Grid) -> Choice:
        """Return what this method does with a message."""
        return cost.choose(bytes, grid, self.wire, self.algorithms, self.chunks)


METHODS = (
    Method("flat ring", ("flat",)),
    Method("hierarchical", ("hierarchical",)),
    Method("2-D mesh", ("mesh",)),
    Method("torus, serial", ("torus",), chunks=(1,)),
    Method("torus, pipelined", ("torus",)),
    Method("torus, bf16 wire", ("torus",), "bf16"),
)


def automatic(wire: Wire) -> Method:
    """Return the method that takes the faster of flat and torus for each message."""
    return Method("auto", ("flat", "torus"), wire)


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


FORMULAS = """\
step = forward + backward + what communication adds + optimizer, by discrete simulation: a bucket
  leaves when its gradients and all buckets before it are complete, one all-reduce at a time
operator = max(FLOPs / (peak x reached share), bytes / (memory bandwidth x reached share), kernel)
exposed = step - the same step without communication
communication = the sum of the all-reduces, as if each were alone
efficiency = step of one rank alone / step, at the same batch per rank (weak scaling)
samples/s = ranks x batch per rank / step
bounds: FLOPs / peak; bytes of the step's operators / peak memory bandwidth; network: the gradient
  bytes that a host's link must carry, 2 (Y-1)/Y S, or those of a rank, at the links' bandwidth"""


@dataclass(frozen=True)
class Cluster:
    """What a plan is made for.

    Args:
        trace: the model's step.
        device: of every rank.
        cost: the links.
        per_node: ranks of a host.
        bucket_mb: of gradient exchange; None takes the best for each case.
        samples_per_second: measured on one device at the batch asked for; scales the compute time
            of every batch by one factor.
        measured_at: that batch.

    Raises:
        UserError: a measured figure above the device's bound.
    """

    trace: Trace
    device: Device
    cost: CostModel
    per_node: int
    bucket_mb: float | None = 25.0
    samples_per_second: float | None = None
    measured_at: int = 0

    def __post_init__(self) -> None:
        rate, batch = self.samples_per_second, self.measured_at
        if rate is not None and batch / rate < self.device.flops_bound(self.trace, batch):
            most = batch / self.device.flops_bound(self.trace, batch)
            raise UserError(
                f"--images-per-second {rate:g}: {self.device.name} cannot do more than {most:.0f} "
                f"of this model, by its peak of {self.device.flops / 1e12:g} TFLOP/s"
            )

    def compute(self, batch: int) -> Compute:
        """Return a rank's work on ``batch`` samples."""
        own = self.device.compute(self.trace, batch)
        if self.samples_per_second is None:
            return own
        modelled = self.device.compute(self.trace, self.measured_at).seconds
        return own.scaled(self.measured_at / self.samples_per_second / modelled)

    def step(self, nodes: int, batch: int, method: Method) -> tuple[Step, float]:
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
        )

    def scaling(
        self,
        by: Literal["nodes", "batch"],
        nodes: int,
        batch: int,
        methods: Sequence[Method],
    ) -> list[Prediction]:
        """Return the predictions of all methods along node counts or along batch sizes."""
        if by == "nodes":
            points = [(count, batch) for count in node_counts(nodes, self.per_node)]
        else:
            points = [(nodes, size) for size in sorted({*BATCHES, batch})]
        return [self.predict(*point, method) for point in points for method in methods]


def node_counts(nodes: int, per_node: int) -> list[int]:
    """Return 1, 2, 4, ... nodes up to 4,096 ranks, with ``nodes`` among them."""
    powers = [2**k for k in range(13) if 2**k * per_node <= MOST_RANKS]
    return sorted({*powers, nodes})


MEASURES = ("step ms", "exposed ms", "comm. ms", "samples/s", "efficiency")


def figures(p: Prediction) -> tuple[str, ...]:
    """Return a prediction's ``MEASURES`` as text."""
    return (
        f"{1e3 * p.step_seconds:.2f}",
        f"{1e3 * p.exposed_seconds:.2f}",
        f"{1e3 * p.communication_seconds:.2f}",
        f"{p.samples_per_second:,.0f}",
        f"{p.efficiency:.1%}",
    )
