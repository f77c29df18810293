"""Which algorithm reduces a message of a size: what the probe measured, or what the user forced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from largebatch.distributed.cost_model import Choice, CostModel
from largebatch.distributed.preference import Preference

if TYPE_CHECKING:
    from largebatch.distributed.all_reduce import AllReduce

CHUNK_BYTES = 2**20  # of a chunk where nothing was measured: a few milliseconds on a slow link
MOST_CHUNKS = 16


@dataclass(frozen=True)
class Selection:
    """What was decided, and on which grounds.

    Attributes:
        algorithm: the one for every size, or ``auto``.
        model: what was measured; None where nothing needed to be.
    """

    algorithm: str
    model: CostModel | None = None

    def choose(self, bytes: int) -> Choice:
        """Return algorithm and chunks for a message of ``bytes`` bytes."""
        if self.algorithm == "flat":
            return Choice("flat", 1, "fp32", 0.0)
        return Choice("torus", min(MOST_CHUNKS, -(-bytes // CHUNK_BYTES) or 1), "fp32", 0.0)


def select(reduce: AllReduce, preference: Preference) -> Selection:
    """Decide for the ranks of ``reduce``; a collective call."""
    return Selection("flat" if reduce.torus is None else "torus")
