"""When a batch grows by the noise scale that a run has measured: the rule alone."""

from __future__ import annotations

from dataclasses import dataclass

from largebatch.schedule.plan import Step

CONFIDENCE = 0.9
"""Of the interval whose bounds the rule goes by."""
RUNNING = 2
"""Windows one after another that have to say the same."""


@dataclass
class NoiseRule:
    """Doubles a batch that is small for its noise, and halves one that is large for it if it may.

    At the end of a window it looks at the bounds of the noise scale: the batch doubles if the lower
    one was at least twice the batch in two windows running, and halves if the upper one was below a
    quarter of it in as many. So it grows to no more than the noise scale, up to where a sample is
    worth at least half of one in a small batch, and only once that is sure; and no noise of the
    measurement drives it to and fro, since between up and down lies a factor of eight.

    Args:
        start: sample from which windows are counted: the warm-up's end.
        window: samples.
        smallest, largest: batch. ``smallest`` as it begins: it never shrinks.
        atom: samples that stay together: both are whole numbers of it.
        running: windows so far that asked to grow, one after another; below zero: to shrink.
    """

    start: int
    window: int
    smallest: int
    largest: int
    atom: int = 1
    running: int = 0

    def due(self, step: Step) -> bool:
        """Whether a window ends with a step."""
        before, after = step.start - self.start, step.end - self.start
        return after > 0 and after // self.window > max(before, 0) // self.window

    def decide(self, batch: int, low: float, high: float) -> int:
        """Return the batch to go on with after a window.

        Args:
            low, high: bounds of the noise scale; ``0`` and ``inf`` where nothing is known.
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
