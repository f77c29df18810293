"""The rule by which a batch grows with the measured gradient noise scale."""

from __future__ import annotations

from dataclasses import dataclass

from largebatch.schedule.plan import Step

CONFIDENCE = 0.9
"""Of the interval whose bounds the rule goes by."""
RUNNING = 2
"""Windows one after another that have to say the same."""


@dataclass
class NoiseRule:
    """Doubles a batch far below the noise scale; halves one far above it, if allowed.

    The rule looks at the bounds of the noise scale at the end of each window. The batch doubles if
    the lower bound was at least twice the batch in two successive windows. It halves if the upper
    bound was below a quarter of the batch in two successive windows. So the batch grows at most to
    the noise scale, where a sample is worth at least half a sample in a small batch, and only when
    this is certain. Measurement noise does not make the batch oscillate, since the two thresholds
    differ by a factor of eight.

    Args:
        start: sample from which windows are counted: the end of the warm-up.
        window: length of a window in samples.
        smallest, largest: limits of the batch. With ``smallest`` equal to the first batch it never
            shrinks.
        atom: samples that must stay together; both limits are multiples of it.
        running: number of successive windows so far that asked to grow; negative: to shrink.
    """

    start: int
    window: int
    smallest: int
    largest: int
    atom: int = 1
    running: int = 0

    def due(self, step: Step) -> bool:
        """Return whether a window ends with a step."""
        before, after = step.start - self.start, step.end - self.start
        return after > 0 and after // self.window > max(before, 0) // self.window

    def decide(self, batch: int, low: float, high: float) -> int:
        """Return the next batch after a window.

        Args:
            low, high: bounds of the noise scale; ``0`` and ``inf`` if nothing is known.
        """
        if low >= 2 * batch and 2 * batch <= self.largest:
            self.running = max(self.running, 0) + 1
        elif high < batch / 4 and not batch % (2 * self.atom) and batch // 2 >= self.smallest:
            self.running = min(self.running, 0) - 1
        else:
            self.running = 0
        if abs(self.running) < RUNNING:
            return batch
        grown = 2 * batch if self.running > 0 else batch // 2
        self.running = 0
        return grown
