"""React to running out of memory in a step: halve the forward passes and try again."""

from __future__ import annotations

from largebatch._errors import Lost
from largebatch.schedule import Step
from largebatch.train.feed import Feed
from largebatch.train.micro import halved
from largebatch.train.progress import say
from largebatch.train.stepper import Stepper


def back_off(error: BaseException, step: Step, feed: Feed, stepper: Stepper) -> None:
    """Halve the forward passes of the step's phase, and drop the step so that it can be repeated.

    Raises:
        Lost: the user has set the size of the passes, a pass holds one ghost already, or there are
            several ranks.
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
