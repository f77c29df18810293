"""Constants of links and devices: the published ones of ``constants.yaml``, or measured ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from largebatch._documents import read_json, read_yaml
from largebatch._errors import UserError, nearest
from largebatch.distributed.cost_model import CostModel, Link
from largebatch.record import json_text
from largebatch.simulate.step import Compute
from largebatch.simulate.trace import Operator, Trace

# Keys of a measured model, with the least value of each in seconds; no link carries 10^18 bytes/s.
OF_A_LINK = {"latency": 0.0, "seconds_per_byte": 1e-18}
OF_A_MODEL = {"reduction": 0.0, "launch": 0.0, "chunk": 0.0}
MOST_SECONDS = 1e3
OPTIMIZER_BYTES = 20  # a parameter: SGD reads fp32 weight, gradient, momentum, writes two of them
STATE_BYTES = 8  # a parameter: gradient and momentum in fp32, beside the weight


@dataclass(frozen=True)
class Device:
    """An accelerator.

    Args:
        name: name in the table.
        flops: peak FLOP/s at the precision asked for.
        bandwidth: bandwidth of its memory, bytes/s.
        capacity: bytes of its memory.
        reached_flops: share of the peak that kernels reach.
        reached_bandwidth: share of the memory's bandwidth that kernels reach.
        kernel_seconds: least seconds of any kernel.
        local: name of the link to the other devices of the host.
        source: source of the peak values.
    """

    name: str
    flops: float
    bandwidth: float
    capacity: float
    reached_flops: float
    reached_bandwidth: float
    kernel_seconds: float
    local: str
    source: str

    def compute(self, trace: Trace, batch: int) -> Compute:
        """Return the seconds of a step's parts, with each operator at the reached roofline.

        Args:
            trace: the step.
            batch: samples on the rank.
        """
        seconds = [self._seconds(operator, batch) for operator in trace.operators]
        ends = [0.0, *accumulate(seconds[trace.forward :])]  # of the backward pass' operators
        return Compute(
            forward=sum(seconds[: trace.forward]),
            backward=ends[-1],
            optimizer=OPTIMIZER_BYTES * trace.elements / (self.bandwidth * self.reached_bandwidth),
            gradients=tuple(
                (ends[gradient.after - trace.forward], 4 * gradient.elements)
                for gradient in trace.gradients
            ),
        )

    def memory(self, trace: Trace, batch: int) -> float:
        """Return the least bytes of memory for a step, without buffers of kernels and NCCL.

        Counted are weights, gradients and momentum in float32, and the tensors that autograd keeps
        for the backward pass.
        """
        return trace.held + STATE_BYTES * trace.elements + batch * trace.kept

    def largest_batch(self, trace: Trace) -> int:
        """Return the largest number of samples that fit this device's memory; 0 if none fit."""
        return max(0, int((self.capacity - self.memory(trace, 0)) // max(trace.kept, 1.0)))

    def flops_bound(self, trace: Trace, batch: int) -> float:
        """Return the least seconds for the step's FLOPs, at the device's peak."""
        return trace.flops() * batch / self.flops

    def memory_bound(self, trace: Trace, batch: int) -> float:
        """Return the least seconds to move the bytes of the step's operators."""
        return (trace.bytes(batch) + OPTIMIZER_BYTES * trace.elements) / self.bandwidth

    def _seconds(self, operator: Operator, batch: int) -> float:
        flops = batch * operator.flops / (self.flops * self.reached_flops)
        size = operator.fixed_bytes + batch * operator.bytes
        return max(flops, size / (self.bandwidth * self.reached_bandwidth), self.kernel_seconds)


@lru_cache(maxsize=1)
def table() -> dict[str, Any]:
    """Return the shipped constants with their sources."""
    path = Path(__file__).with_name("constants.yaml")
    found: dict[str, Any] = read_yaml(path, path.name)
    return found


def device(name: str, precision: str) -> Device:
    """Return a device of the table.

    Raises:
        UserError: there is no such device, or it has no peak for ``precision``.
    """
    entry = _entry("device", name, table()["devices"])
    if precision not in entry["peaks"]:
        raise UserError(
            f"--precision {precision}: {name} has {', '.join(entry['peaks'])}"
            f"{nearest(precision, entry['peaks'])}"
        )
    reached = table()["reached"]
    return Device(
        name=name,
        flops=float(entry["peaks"][precision]),
        bandwidth=float(entry["memory"]),
        capacity=float(entry["capacity"]),
        reached_flops=float(reached["flops"]),
        reached_bandwidth=float(reached["bandwidth"]),
        kernel_seconds=float(reached["kernel_seconds"]),
        local=entry["local"],
        source=entry["source"],
    )


def link(name: str, option: str = "link", cards: int = 1) -> Link:
    """Return a link of the table, or one written as ``GB/s,microseconds``.

    Args:
        name: the link.
        option: the option that named it, for the message.
        cards: number of such links that a host has and uses together.

    Raises:
        UserError: there is no such link.
    """
    if name[:1].isdigit() or name[:1] == ".":
        gigabytes, comma, microseconds = name.partition(",")
        try:
            bandwidth, latency = 1e9 * float(gigabytes), 1e-6 * float(microseconds)
        except ValueError:
            comma = ""
        if not comma or not (0 < bandwidth < float("inf") and 0 <= latency < 1e3):
            raise UserError(
                f"--{option} {name}: write GB/s,microseconds (12.5,14), each above 0, or a name"
            )
        return Link(latency, 1 / (cards * bandwidth))
    entry = _entry(option, name, table()["links"])
    return Link(float(entry["latency"]), 1 / (cards * float(entry["bandwidth"])))


def published(fast: Link, slow: Link) -> CostModel:
    """Return the cost model of two links with the table's launch."""
    return CostModel(fast, slow, launch=float(table()["launch"]["seconds"]))


def measured(path: str | Path) -> CostModel:
    """Read a cost model that was measured, as JSON.

    The file holds ``fast`` and ``slow``, each with ``latency`` (seconds) and ``seconds_per_byte``,
    and may hold ``launch`` and ``reduction``. All may also be below a key ``model``, as in the
    files of the probe (``links-*.json`` in the user's cache).

    Raises:
        UserError: there is no such file, or its form is wrong; the message names the key.
    """
    name = f"--constants {path}: not a cost model"
    values = read_json(path, name)
    if isinstance(values, dict):
        values = values.get("model", values)
    if not isinstance(values, dict):
        raise UserError(f"{name}: expected an object with fast and slow")
    links: dict[str, Any] = {}
    for link_name in ("fast", "slow"):
        entry = values.get(link_name)
        if not isinstance(entry, dict):
            raise UserError(f"{name}: {link_name} is missing: an object of {', '.join(OF_A_LINK)}")
        _check_keys(f"{name}: {link_name}.", entry, OF_A_LINK, required=True)
        links[link_name] = Link(**entry)
    rest = {key: value for key, value in values.items() if key not in links}
    _check_keys(f"{name}: ", rest, OF_A_MODEL, required=False)
    return CostModel(**links, **rest)


def _check_keys(
    where: str, values: Mapping[str, Any], least: Mapping[str, float], required: bool
) -> None:
    """Refuse keys that are none, and numbers that no machine has."""
    for key in least if required else ():
        if key not in values:
            raise UserError(f"{where}{key} is missing")
    for key, value in values.items():
        if key not in least:
            raise UserError(f"{where}{key}: no such key; there are {', '.join(least)}")
        if value is None and key == "chunk":
            continue
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not least[key] <= value <= MOST_SECONDS:
            raise UserError(
                f"{where}{key}={json_text(value)}: seconds from {least[key]:g} to {MOST_SECONDS:g}"
            )


def _entry(option: str, name: str, entries: Mapping[str, Any]) -> dict[str, Any]:
    if name not in entries:
        raise UserError(
            f"--{option} {name}: choose from {', '.join(entries)}{nearest(name, entries)}"
        )
    return dict(entries[name])
