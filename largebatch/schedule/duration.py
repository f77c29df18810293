"""The type of all durations: epochs, samples, steps or a share of the run."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import TYPE_CHECKING

from largebatch._errors import UserError

if TYPE_CHECKING:
    from largebatch.schedule.clock import Clock

UNITS = {"ep": "epochs", "sa": "samples", "st": "steps", "%": "percent of the run"}
SUFFIXES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
ALLOWED = "write a number with its unit: 90ep, 1.28Msa, 500st or 5%"

# Bounded digits and exponent: a hostile "1e999999999ep" must not become a huge integer.
_FORM = re.compile(
    r"(\d{1,18}(?:\.\d{0,18})?|\.\d{1,18})(?:e([+-]?\d{1,2}))?\s*([kMG]?)(ep|sa|st|%)", re.ASCII
)


class Duration:
    """A length of training, exact: ``90ep``, ``1.28Msa``, ``500st`` or ``5%``.

    Immutable, hashable and equal by value; ``Duration.parse(str(d)) == d``. The class is not a
    dataclass, so that a config parser reads one value and not a group of keys.

    Args:
        value: number of units; not negative.
        unit: ``ep`` (epochs), ``sa`` (samples), ``st`` (optimizer steps) or ``%`` (of the run).

    Raises:
        UserError: an unknown unit, a negative value, part of a step, or more than 100%.
    """

    __slots__ = ("unit", "value")

    value: Fraction
    unit: str

    def __init__(self, value: int | float | Fraction, unit: str) -> None:
        if unit not in UNITS:
            raise UserError(f"duration {value}{unit}: {ALLOWED}")
        if not 0 <= value < 10**18:  # also catches nan
            raise UserError(f"duration {value}{unit}: from 0 up; {ALLOWED}")
        exact = Fraction(str(value)) if isinstance(value, float) else Fraction(value)
        if unit in ("sa", "st") and exact.denominator != 1:
            raise UserError(f"duration {_decimal(exact)}{unit}: whole {UNITS[unit]} only")
        if unit == "%" and exact > 100:
            raise UserError(f"duration {_decimal(exact)}%: at most 100% of the run")
        object.__setattr__(self, "value", exact)
        object.__setattr__(self, "unit", unit)

    @classmethod
    def parse(cls, text: object) -> Duration:
        """Read a duration from its written form.

        Raises:
            UserError: no unit, no number, a negative, not finite, or an unknown suffix.
        """
        if isinstance(text, Duration):
            return text
        found = _FORM.fullmatch(text.strip()) if isinstance(text, str) else None
        if found is None:
            raise UserError(f"duration {text!r}: {ALLOWED}")
        number, exponent, suffix, unit = found.groups()
        if suffix and unit != "sa":
            raise UserError(f"duration {text!r}: k, M and G go with samples only; {ALLOWED}")
        value = Fraction(number) * Fraction(10) ** int(exponent or 0) * SUFFIXES[suffix]
        return cls(value, unit)

    def samples(self, clock: Clock) -> int:
        """Return the duration in samples of ``clock``'s run, rounded to the nearest."""
        if self.unit == "sa":
            return int(self.value)
        if self.unit == "ep":
            return _nearest(self.value * clock.epoch_samples)
        if self.unit == "%":
            return _nearest(self.value * clock.total / 100)
        return clock.samples_after(int(self.value))

    def __mul__(self, factor: int) -> Duration:
        """Return it stretched by a whole factor (regime adaptation)."""
        return Duration(self.value * factor, self.unit)

    def __str__(self) -> str:
        if self.unit != "sa":
            return f"{_decimal(self.value)}{self.unit}"
        forms = [f"{_decimal(self.value / size)}{suffix}sa" for suffix, size in SUFFIXES.items()]
        return min(reversed(forms), key=len)

    def __repr__(self) -> str:
        return f"Duration({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Duration):
            return NotImplemented
        return (self.value, self.unit) == (other.value, other.unit)

    def __hash__(self) -> int:
        return hash((self.value, self.unit))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Duration does not change: {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a Duration does not change: {name}")

    def __reduce__(self) -> tuple[type[Duration], tuple[Fraction, str]]:
        return Duration, (self.value, self.unit)


def _nearest(value: Fraction) -> int:
    """Round halves up, unlike ``round``: neighbouring durations must keep their order."""
    return (2 * value.numerator + value.denominator) // (2 * value.denominator)


def _decimal(value: Fraction) -> str:
    """Write a fraction in full decimal digits, or as ``n/d`` where it has no end."""
    if value.denominator == 1:
        return str(value.numerator)
    digits, rest = 0, value.denominator
    while rest % 10 == 0 or rest % 2 == 0 or rest % 5 == 0:
        rest //= 10 if rest % 10 == 0 else 2 if rest % 2 == 0 else 5
        digits += 1
    if rest != 1:
        return f"{value.numerator}/{value.denominator}"
    scaled = str(int(value * 10**digits)).rjust(digits + 1, "0")
    return f"{scaled[:-digits]}.{scaled[-digits:]}".rstrip("0")
