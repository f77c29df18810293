"""What a run does when memory has run out in a step."""

from __future__ import annotations

from largebatch._errors import Lost
from largebatch.schedule import Step
from largebatch.train.feed import Feed
from largebatch.train.micro import halved
from largebatch.train.progress import say
from largebatch.train.stepper import Stepper


def back_off(error: BaseException, step: Step, feed: Feed, stepper: Stepper) -> None:
    """Halve the forward passes of the step's phase and forget the step, which is to be taken again.

    Raises:
        Lost: their size was not ours to choose, a pass holds one ghost already, or other
            ranks take part.
    """
    micro = feed.micro(step)
    smaller = halved(micro, feed.atoms.size) if step.phase.micro == "auto" else None
    if smaller is None or feed.world.world_size > 1:
        raise Lost(
            f"memory ran out at batch.micro={micro}: set batch.micro to less ({error})"
        ) from error
    say(f"memory ran out: batch.micro {micro} -> {smaller}")
    feed.fitting[step.phase.extent] = smaller
    stepper.retry()
