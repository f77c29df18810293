"""A run of `largebatch train` from beginning to end, of which the figures alone are kept."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

from largebatch.train import parse, run


def summary_of(options: Sequence[str]) -> dict[str, Any]:
    """Return what a run says of itself at its end; of one that diverged, ``{"lost": why}``.

    Args:
        options: of ``largebatch train``, such as ``--optim.lr=0.1``.
    """
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        quiet = ["--telemetry.hardware_every=0", "--checkpoint.every=100%"]
        with redirect_stderr(io.StringIO()):
            outcome = run(parse.parse([*quiet, *options, f"--run.dir={folder}/run"]))
    return outcome.summary or {"lost": outcome.lost}
