"""Do a short run of `largebatch train` on the digits and return its figures."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

from largebatch.train import parse, run


def digits_run(epochs: int, seed: int, options: Sequence[str]) -> dict[str, Any]:
    """Train `digits_cnn` by SGD with momentum, its rate falling as a cosine; measure at the end.

    Args:
        options: further options of ``largebatch train``, such as ``--optim.lr=0.1``.

    Returns:
        The run's summary; ``{"lost": why}`` if the run diverged.
    """
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        own = [
            *("--data.name=digits", "--model.name=digits_cnn"),
            *("--optim.name=sgd", "--optim.momentum=0.9"),
            *(f"--schedule.length={epochs}ep", "--schedule.curve=cosine"),
            *(f"--evaluate.every={epochs}ep", "--checkpoint.every=100%"),
            *("--telemetry.hardware_every=0", f"--run.seed={seed}", f"--run.dir={folder}/run"),
        ]
        with redirect_stderr(io.StringIO()):
            outcome = run(parse.parse([*own, *options]))
    return outcome.summary or {"lost": outcome.lost}
