"""Config sections ``batch`` and ``schedule``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from largebatch._errors import UserError
from largebatch._keys import FREE, OF_RANK
from largebatch.schedule.curve import curves
from largebatch.schedule.duration import Duration

FORMER_PHASE_KEYS = {"image_size": "extent"}
"""Keys of a phase by their former names, which are still read."""


@dataclass
class PhaseConfig:
    """A phase of the batch plan; what is left out is taken from ``batch``."""

    until: Duration | None = None
    """Where the phase ends, from the start of the run; left out in the last phase only."""
    size: int | None = None
    """Samples per optimizer step over all ranks."""
    micro: int | Literal["auto"] | None = None
    """Samples per rank and forward; auto: the largest that fits."""
    extent: int | None = None
    """Extent of the training samples: pixels of an image's side, tokens of a window of text
    (``image_size`` is its alias)."""
    lr_multiplier: float = 1.0
    """Factor on the learning rate, on top of curve and scaling."""


@dataclass
class BatchConfig:
    """The global batch and how it changes."""

    size: int = 256
    """Samples per optimizer step over all ranks."""
    micro: int | Literal["auto"] | None = field(default=None, metadata=FREE | OF_RANK)
    """Samples per rank and forward; auto: the largest that fits; null: the rank's whole share."""
    reference: int | None = None
    """Batch at which optim.lr was tuned; null: batch.size, so that nothing is scaled."""
    plan: list[PhaseConfig] = field(default_factory=list)
    """Phases of the run, in order, each with its own batch; none: batch.size throughout."""

    def check(self) -> None:
        """Refuse what cannot be, naming the key.

        Raises:
            UserError: a size is not positive, or phases do not end where the next begins.
        """
        _at_least_one("batch.size", self.size)
        _at_least_one("batch.micro", self.micro)
        _at_least_one("batch.reference", self.reference)
        for index, phase in enumerate(self.plan):
            key = f"batch.plan[{index}]"
            _at_least_one(f"{key}.size", phase.size)
            _at_least_one(f"{key}.micro", phase.micro)
            _at_least_one(f"{key}.extent", phase.extent)
            if not 0 <= phase.lr_multiplier < float("inf"):
                raise UserError(f"{key}.lr_multiplier={phase.lr_multiplier}: a number from 0 up")
            if phase.until is None and index + 1 < len(self.plan):
                raise UserError(f"{key}.until: only the last phase can leave it out")


@dataclass
class ScheduleConfig:
    """The length of the run and the learning rate along it."""

    length: Duration = field(default_factory=lambda: Duration(30, "ep"))
    """Length of the run, in ep, sa or st."""
    warmup: Duration | None = None
    """Warm-up: the rate climbs in a straight line to its curve; null: none."""
    warmup_start: Literal["zero", "reference"] = "zero"
    """Where the warm-up starts: at zero or at the unscaled optim.lr (Goyal et al. 2017)."""
    curve: str = "cosine"
    """Curve of the rate: constant, multistep, poly, cosine, sgdr or cyclical."""
    milestones: list[Duration] = field(default_factory=list)
    """multistep: where the rate is multiplied by gamma, from the start of the run."""
    gamma: float = 0.1
    """multistep: factor at each milestone; exp_range: factor on the height of each cycle."""
    power: float = 2.0
    """poly: exponent of the decay."""
    end: float = 0.0
    """Lowest rate: where poly and cosine end and where the cycles of sgdr and cyclical bottom."""
    cycle: Duration | None = None
    """sgdr: length of the first cycle; cyclical: from bottom to peak (half a cycle)."""
    cycle_mult: float = 1.0
    """sgdr: each cycle is this many times as long as the one before."""
    cycle_shape: Literal["triangular", "triangular2", "exp_range"] = "triangular"
    """cyclical: peaks of equal height, halved from cycle to cycle, or multiplied by gamma."""
    regime: Literal["epochs", "steps"] = "epochs"
    """steps: stretch ep and sa by ceil(batch.size / batch.reference), to keep the updates."""

    def check(self) -> None:
        """Refuse what cannot be, naming the key.

        Raises:
            UserError: a number out of range, or a key that the curve does not use.
        """
        if self.length.unit == "%":
            raise UserError(f"schedule.length={self.length}: in ep, sa or st, not in %")
        if self.length.value == 0:
            raise UserError(f"schedule.length={self.length}: more than 0")
        if not 0 < self.gamma < float("inf"):
            raise UserError(f"schedule.gamma={self.gamma}: a number above 0")
        if not 0 < self.power < float("inf"):
            raise UserError(f"schedule.power={self.power}: a number above 0")
        if not 0 <= self.end < float("inf"):
            raise UserError(f"schedule.end={self.end}: a number from 0 up")
        if not 1 <= self.cycle_mult < float("inf"):
            raise UserError(f"schedule.cycle_mult={self.cycle_mult}: a number from 1 up")
        if self.cycle is not None and self.cycle.value == 0:
            raise UserError(f"schedule.cycle={self.cycle}: more than 0")
        takes = curves.entry(self.curve).facts.takes
        if self.milestones and "milestones" not in takes:
            takers = curves.where(lambda facts: "milestones" in facts.takes)
            raise UserError(
                f"schedule.milestones: for schedule.curve={takers} only, not {self.curve}"
            )
        if self.cycle is not None and "cycle" not in takes:
            takers = curves.where(lambda facts: "cycle" in facts.takes)
            raise UserError(
                f"schedule.cycle={self.cycle}: for schedule.curve {takers} only, not {self.curve}"
            )


def _at_least_one(key: str, value: int | str | None) -> None:
    if isinstance(value, int) and value < 1:
        raise UserError(f"{key}={value}: at least 1")
