"""Random calls of every operator: none crashes, hangs, or is wrong without a word."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import largebatch
from largebatch import _ops

SCRIPT = Path(__file__).with_name("fuzz_operators.py")
pytestmark = pytest.mark.skipif(
    _ops.face() == "reference", reason="the compiled ops are absent"
)  # the reference would be compared with itself


def fuzz(names: list[str], first: int, count: int) -> dict[str, int]:
    """Return how many calls of each operator were accepted; fail with how to see a fault again."""
    root = str(Path(largebatch.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), ",".join(names), str(first), str(count)],
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    if done.returncode != 0:
        said = [line for line in lines if line.startswith("fault: ")]
        name, seed = [line for line in lines if not line.startswith("fault: ")][-1].split()[:2]
        pytest.fail(
            f"largebatch::{name}, seed {seed}, status {done.returncode} (negative: a signal)\n"
            f"{said[0] if said else done.stderr[-1500:]}\n"
            f"again: PYTHONPATH={root} python {SCRIPT} {name} {seed} 1"
        )
    return {line.split()[0]: int(line.split()[2]) for line in lines if " accepted " in line}


def test_some_calls_of_every_operator() -> None:
    accepted = fuzz(list(_ops.OPERATORS), 0, 25)
    assert set(accepted) == set(_ops.OPERATORS)
    assert min(accepted.values()) > 5  # else nothing is compared


@pytest.mark.slow
@pytest.mark.parametrize("name", _ops.OPERATORS)
def test_many_calls(name: str) -> None:
    assert fuzz([name], 100, 300)[name] > 75
