"""Select the algorithm by message size, as the probe measured or as the user forced."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from largebatch._cache import cache_folder
from largebatch.distributed.algorithms import Algorithms
from largebatch.distributed.cost_model import Choice, CostModel, Wire
from largebatch.distributed.probe import Probe, Timing
from largebatch.distributed.topology import Topology

# Of a chunk where nothing was measured: more overlap costs more wake-ups, or more launches.
HOST_CHUNK_BYTES = 700_000
DEVICE_CHUNK_BYTES = 2**21
MOST_CHUNKS = 64
MARGIN = 1.05  # the torus must win by more than two measurements of one thing differ
LARGE = 2**22  # bytes; what smaller messages take beside the model is latency and bursts
KEPT_SECONDS = 24 * 3600.0  # networks change


@dataclass(frozen=True)
class Selection:
    """The decision, with the measurements behind it.

    Attributes:
        algorithm: the algorithm for every message, or ``auto``: flat ring or torus, by size.
        topology: the grid.
        wire: number format of float32 on the columns of the grid.
        model: the measured cost model of the links; None if no measurement was needed.
        timings: all-reduces that were timed to check the model.
        chunk_bytes: bytes of a chunk if there is no model.
    """

    algorithm: str
    topology: Topology
    wire: Wire
    model: CostModel | None = None
    timings: tuple[Timing, ...] = ()
    chunk_bytes: int = DEVICE_CHUNK_BYTES

    def choose(self, bytes: int) -> Choice:
        """Return algorithm and chunks for a message of ``bytes`` bytes."""
        if self.algorithm not in ("auto", "torus"):
            return Choice(self.algorithm, 1, "fp32", 0.0)
        if self.model is None:
            chunks = min(MOST_CHUNKS, max(1, round(bytes / self.chunk_bytes)))
            return Choice("torus", chunks, self.wire, 0.0)
        flat = self.model.choose(bytes, self.topology, self.wire, ("flat",))
        torus = self.model.choose(bytes, self.topology, self.wire, ("torus",))
        seconds = {choice.algorithm: self.seconds(choice, bytes) for choice in (flat, torus)}
        best = torus if seconds["torus"] * MARGIN < seconds["flat"] else flat
        return Choice(best.algorithm, best.chunks, best.wire, seconds[best.algorithm])

    def seconds(self, choice: Choice, bytes: int) -> float:
        """Return the expected seconds of ``choice``: the model's, corrected by timings.

        The model covers links only. The additional processor time was measured at a few sizes and
        is interpolated between them. Beyond the largest size, if that is ``LARGE``, the additional
        time grows in proportion to the bytes.
        """
        left_out = [
            (timing.bytes, timing.seconds - timing.expected)
            for timing in self.timings
            if timing.algorithm == choice.algorithm
        ]
        if not left_out:
            return choice.seconds
        below = max((entry for entry in left_out if entry[0] <= bytes), default=left_out[0])
        above = min((entry for entry in left_out if entry[0] >= bytes), default=left_out[-1])
        width = above[0] - below[0]
        share = (bytes - below[0]) / width if width > 0 else 0.0
        added = below[1] + share * (above[1] - below[1])
        largest = left_out[-1][0]
        added *= bytes / largest if bytes > largest >= LARGE else 1.0
        return max(choice.seconds + added, choice.seconds / 2)

    def __str__(self) -> str:
        if self.model is None:
            return f"{self.topology}: {self.algorithm}"
        links = ", ".join(
            f"{name} {1e6 * link.latency:.0f} us and {_rate(link.seconds_per_byte)}"
            for name, link in (("rows", self.model.fast), ("columns", self.model.slow))
        )
        ranges: list[str] = []
        last = ""
        for power in range(10, 31):
            algorithm = self.choose(2**power).algorithm
            if algorithm != last:
                ranges.append(algorithm if not last else f"{algorithm} from {_size(2**power)}")
                last = algorithm
        return f"{self.topology}: {links}; {', '.join(ranges)}"


def select(algorithms: Algorithms) -> Selection:
    """Decide for the ranks of ``algorithms``: a collective call that may measure for a few seconds.

    Measurements are kept for a day in the user's cache, by hosts, grid and number format.
    """
    topology, preference = algorithms.topology, algorithms.preference
    if not preference.admits_torus:
        return Selection(preference.wanted, topology, "fp32")
    if algorithms.torus is None:
        return Selection("flat", topology, "fp32")
    if preference.wanted == "torus":
        on_host = algorithms.device.type == "cpu"
        chunk_bytes = HOST_CHUNK_BYTES if on_host else DEVICE_CHUNK_BYTES
        return Selection("torus", topology, preference.wire, chunk_bytes=chunk_bytes)
    kept = _cache_file(algorithms)
    if algorithms.rank == 0:
        algorithms.store.set("kept", _read(kept))
    content = bytes(algorithms.store.get("kept")).decode()
    fresh = not content
    if fresh:
        model, timings = Probe(algorithms).run()
    else:
        values = json.loads(content)
        model = CostModel.from_mapping(values["model"])
        timings = [Timing(**timing) for timing in values["timings"]]
    selection = Selection("auto", topology, preference.wire, model, tuple(timings))
    if algorithms.rank == 0:
        if fresh:
            _write(kept, {"model": asdict(model), "timings": [asdict(t) for t in timings]})
        source = "measured" if fresh else f"kept in {kept.name}"
        print(f"all-reduce over {selection} ({source})", file=sys.stderr, flush=True)
    return selection


def _cache_file(algorithms: Algorithms) -> Path:
    """Return where rank 0 keeps what was measured on these hosts."""
    hosts = ""
    if algorithms.rank == 0:
        names = [
            bytes(algorithms.store.get(f"host/{rank}")) for rank in range(algorithms.world_size)
        ]
        hosts = b"|".join(names).hex()
    parts = (hosts, algorithms.topology.key(), algorithms.device.type, algorithms.preference.wire)
    name = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    return cache_folder() / f"links-{name}.json"


def _read(path: Path) -> str:
    try:
        return path.read_text() if time.time() - path.stat().st_mtime < KEPT_SECONDS else ""
    except OSError:
        return ""


def _write(path: Path, content: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(content))
    except OSError:
        return  # a home that cannot be written costs a probe a start


def _rate(seconds_per_byte: float) -> str:
    return f"{1e-6 / seconds_per_byte:.3g} MB/s" if seconds_per_byte > 0 else "no limit seen"


def _size(bytes: int) -> str:
    return f"{bytes // 1024} KiB" if bytes < 2**20 else f"{bytes // 2**20} MiB"
