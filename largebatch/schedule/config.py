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
    """A phase of the batch plan; unset keys are taken from ``batch``."""

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
    noise_scale: float | None = None
    """Samples; what optim.scaling=surge goes by in this phase; left out: batch.noise_scale."""
    second_moment: dict[str, float] | None = None
    """Factors on the optimizer's second moment when the phase begins, by name of the parameter, *
    for all others; batch.control=noise writes them."""
    warmup: Duration | None = None
    """From where the phase begins the rate climbs from zero again, in a straight line over so long
    (You et al. 2020, "re-warm-up" after a change of batch); the first phase has schedule.warmup."""


@dataclass
class BatchConfig:
    """The global batch size and its changes during the run."""

    size: int = 256
    """Samples per optimizer step over all ranks."""
    micro: int | Literal["auto"] | None = field(default=None, metadata=FREE | OF_RANK)
    """Samples per rank and forward; auto: the largest that fits; null: the rank's whole share."""
    reference: int | None = None
    """Batch at which optim.lr was tuned; null: batch.size, so that nothing is scaled."""
    plan: list[PhaseConfig] = field(default_factory=list)
    """Phases of the run, in order, each with its own batch; none: batch.size throughout."""
    control: Literal["none", "noise", "late", "seesaw"] = "none"
    """How the batch grows up to batch.max, without a plan: not at all; noise: it doubles where the
    noise scale, measured in the run, is at least twice the batch; late: once, at batch.late;
    seesaw: it doubles where the curve has halved the rate, which falls by sqrt(2) instead."""
    max: int | None = None
    """Largest batch of batch.control, in samples."""
    min: int | None = None
    """control=noise: smallest batch; null: it never shrinks."""
    late: Duration = field(default_factory=lambda: Duration.parse("75%"))
    """control=late: where batch.max takes the place of batch.size."""
    noise_scale: float | None = None
    """Samples; where optim.scaling=surge has its peak."""
    noise_every: Duration = field(default_factory=lambda: Duration.parse("4st"))
    """control=noise: distance between the steps that are measured."""
    noise_half_life: Duration = field(default_factory=lambda: Duration.parse("2%"))
    """control=noise: half-life of a measured step's weight; it decides every two of them, and no
    more often than every 1% of the run."""
    noise_source: str = "auto"
    """control=noise: what is compared with the whole step, as the probe `noise` has it."""

    def check(self) -> None:
        """Check the section; errors name the key.

        Raises:
            UserError: a size is not positive, or phases do not end where the next begins.
        """
        _at_least_one("batch.size", self.size)
        _at_least_one("batch.micro", self.micro)
        _at_least_one("batch.reference", self.reference)
        self._check_control()
        for index, phase in enumerate(self.plan):
            key = f"batch.plan[{index}]"
            _above_zero(f"{key}.noise_scale", phase.noise_scale)
            for name, factor in (phase.second_moment or {}).items():
                _above_zero(f"{key}.second_moment[{name!r}]", factor)
            _at_least_one(f"{key}.size", phase.size)
            _at_least_one(f"{key}.micro", phase.micro)
            _at_least_one(f"{key}.extent", phase.extent)
            if not 0 <= phase.lr_multiplier < float("inf"):
                raise UserError(f"{key}.lr_multiplier={phase.lr_multiplier}: a number from 0 up")
            if phase.warmup is not None and index == 0:
                raise UserError(f"{key}.warmup={phase.warmup}: the first has schedule.warmup")
            if phase.until is None and index + 1 < len(self.plan):
                raise UserError(f"{key}.until: only the last phase can leave it out")

    def _check_control(self) -> None:
        """Refuse keys of a control that is not there, and a control that has no room."""
        control, size = self.control, self.size
        _above_zero("batch.noise_scale", self.noise_scale)
        for key in ("max", "min"):
            _at_least_one(f"batch.{key}", getattr(self, key))
        for key in ("late", "noise_every", "noise_half_life"):
            if getattr(self, key).value == 0:
                raise UserError(f"batch.{key}={getattr(self, key)}: more than 0")
        if self.min is not None and control != "noise":
            raise UserError(f"batch.min={self.min}: for batch.control=noise only, not {control}")
        if control == "none":
            if self.max is not None and not self.plan:
                raise UserError(f"batch.max={self.max}: needs batch.control=noise, late or seesaw")
            return
        if self.plan:
            raise UserError(f"batch.control={control}: makes the plan; leave out batch.plan")
        if self.max is None:
            raise UserError(f"batch.control={control}: needs batch.max, the largest batch it takes")
        if self.max < (size if control == "late" else 2 * size):
            raise UserError(f"batch.max={self.max}: no room to double batch.size={size}")
        if self.min is not None and self.min > size:
            raise UserError(f"batch.min={self.min}: above batch.size={size}")
        if self.late.unit == "st":
            raise UserError(f"batch.late={self.late}: in ep, sa or %")


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
    stop: Literal["length", "plateau"] = "length"
    """plateau: end before the length is over, when the validation loss no longer falls."""
    patience: Duration = field(default_factory=lambda: Duration(10, "ep"))
    """stop=plateau: how long the validation loss may set no new low."""

    def check(self) -> None:
        """Check the section; errors name the key.

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
        if self.patience.value == 0:
            raise UserError(f"schedule.patience={self.patience}: more than 0")
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


def _above_zero(key: str, value: float | None) -> None:
    if value is not None and not 0 < value < float("inf"):
        raise UserError(f"{key}={value}: a number above 0")


def _at_least_one(key: str, value: int | str | None) -> None:
    if isinstance(value, int) and value < 1:
        raise UserError(f"{key}={value}: at least 1")
