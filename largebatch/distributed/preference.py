"""A user's choice of all-reduce, by config or (in other programs) by environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from largebatch._errors import UserError, nearest
from largebatch.distributed.cost_model import Wire

Wanted = Literal["auto", "flat", "torus"]
"""``auto`` weighs the flat one and the torus; every other name is that of an all-reduce."""
WIRE_DTYPES: dict[Wire, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


@dataclass(frozen=True)
class Preference:
    """The algorithm, grid and number format of the all-reduce.

    Attributes:
        algorithm: ``auto`` measures at start and decides by message size. A ``grid`` implies the
            torus unless ``flat`` is set.
        grid: ``YxX``, rows by columns; None follows the hosts.
        wire: number format of float32 gradients between hosts; sums stay in float64, rounded once
            per axis.
    """

    algorithm: Wanted = "auto"
    grid: str | None = None
    wire: Wire = "fp32"

    @property
    def wanted(self) -> Wanted:
        """Return the algorithm that follows from ``algorithm`` and ``grid``."""
        return "torus" if self.grid and self.algorithm == "auto" else self.algorithm

    @property
    def admits_torus(self) -> bool:
        """Return whether messages may go over the torus."""
        return self.wanted in ("auto", "torus")

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str] | None = None, default: Wanted = "auto"
    ) -> Preference:
        """Read LARGEBATCH_ALLREDUCE, LARGEBATCH_TORUS and LARGEBATCH_WIRE."""
        environment = os.environ if environ is None else environ
        algorithm = environment.get("LARGEBATCH_ALLREDUCE") or default
        wire = environment.get("LARGEBATCH_WIRE") or "fp32"
        _one_of("LARGEBATCH_ALLREDUCE", algorithm, get_args(Wanted))
        _one_of("LARGEBATCH_WIRE", wire, get_args(Wire))
        return cls(algorithm, environment.get("LARGEBATCH_TORUS") or None, wire)  # type: ignore[arg-type]


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        choices = ", ".join(allowed)
        raise UserError(f"{name}={value!r}: choose from {choices}{nearest(value, allowed)}")
