"""Predict NCCL's all-reduce: rings and trees in three protocols, by NCCL's own tuner model.

The double binary tree (Sanders, Speck and Traeff 2009) has the latency of log2(Y) hosts, where a
ring has that of all ranks. At hundreds of hosts NCCL chooses the tree for all but huge messages.
Switches that add numbers (NVLS, SHARP) are left out, since not every cluster has them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from largebatch.distributed.cost_model import CostModel
from largebatch.distributed.grid import Shape

PROTOCOLS = ("LL", "LL128", "Simple")

NCCL_FORMULAS = """\
NCCL, S bytes over N ranks on Y hosts of X ranks; w: bandwidth, the slowest of a host's link and the
  links within; e, f, i, n: share of w, base latency, latencies within and between hosts
NCCL ring   p (f + (2(N-1) - 2(Y-1)) i + 2(Y-1) n) + 2(N-1)/N S / (e w), p: 1.4 for Simple beyond
            64 bytes a channel and rank on several hosts
NCCL tree   f + 2((X-1) i + floor(log2 Y) n) + 2 S / (e c(S) w), c: a correction by size
NCCL        the fastest of ring and tree under LL, LL128 and Simple"""


@dataclass(frozen=True)
class Way:
    """NCCL's choice for a message, and the expected time.

    Args:
        algorithm: ring or tree.
        protocol: one of :data:`PROTOCOLS`.
        seconds: seconds that the tuner expects.
    """

    algorithm: str
    protocol: str
    seconds: float

    def __str__(self) -> str:
        return f"NCCL {self.algorithm} ({self.protocol})"


@dataclass(frozen=True)
class Nccl:
    """NCCL's choice between its algorithms and protocols, by :data:`NCCL_FORMULAS`.

    Args:
        constants: the section ``nccl`` of the table.
    """

    constants: dict[str, Any]

    def choose(self, bytes: float, topology: Shape, cost: CostModel) -> Way:
        """Return the fastest way to reduce ``bytes`` bytes.

        Args:
            bytes: size of the message.
            topology: ranks placed in order on hosts of equal size.
            cost: gives the bandwidths of links; latencies are NCCL's own.
        """
        return min(self._ways(bytes, topology, cost), key=lambda way: way.seconds)

    def _ways(self, bytes: float, topology: Shape, cost: CostModel) -> Iterator[Way]:
        ranks, hosts = topology.world_size, topology.hosts
        inside = ranks // hosts
        slowest = max(
            cost.slow.seconds_per_byte if hosts > 1 else 0.0,
            cost.fast.seconds_per_byte if inside > 1 else 0.0,
        )
        for place, protocol in enumerate(PROTOCOLS):
            for algorithm in ("ring", "tree"):
                of = {key: value[place] for key, value in self.constants[algorithm].items()}
                rate = of["share"] / slowest if slowest else math.inf
                if protocol == "LL":
                    rate = min(rate, self.constants["ll_most"][min(hosts, 3) - 1])
                if inside == 1:  # no step within a host hides any part of one between
                    of["between"] = self.constants["tree"]["between"][place]
                if algorithm == "ring":
                    latency = self._ring_latency(of, self.constants["send"][place], ranks, hosts)
                    if hosts > 1 and bytes >= 64 * ranks * self.constants["channels"]:
                        latency *= of["plateau"]
                    volume = 2 * (ranks - 1) / ranks * bytes
                else:
                    latency = of["base"] + 2 * (
                        (inside - 1) * of["within"] + int(math.log2(hosts)) * of["between"]
                    )
                    volume = 2 * bytes / _corrected(of["correction"], bytes)
                yield Way(algorithm, protocol, latency + volume / rate)

    @staticmethod
    def _ring_latency(of: dict[str, float], send: float, ranks: int, hosts: int) -> float:
        between = 2 * (hosts - 1)
        within = max(of["within"], send if hosts > 1 else 0.0)
        return of["base"] + (2 * (ranks - 1) - between) * within + between * of["between"]


def _corrected(shares: Sequence[float], bytes: float) -> float:
    """Return the share of its bandwidth that a tree reaches at ``bytes``."""
    power = int(math.log2(bytes / 64)) if bytes >= 64 else -1
    return shares[power] if 0 <= power < len(shares) else 1.0
