"""PyTorch's own tests of collectives and DistributedDataParallel, unchanged, on back end `torus`.

    python benchmarks/torch_ddp_tests.py --json benchmarks/results/torch_ddp_tests.json [NAME...]

The tests are those that ship with torch (torch.testing._internal.distributed), all whose subject is
an all-reduce or DDP and that need no GPU. Each runs on eight ranks (some want no fewer) on gloo and
on the torus with an explicit grid of 2 x 4, so that the schedule runs although all ranks are on one
host. What passes on gloo has to pass on the torus, unless torch's test skips it for being a back
end of another name. `pip install expecttest`, which torch's tests import.
"""

from __future__ import annotations

import argparse
import inspect
import json
import multiprocessing
import os
import re
import subprocess
import sys
import traceback
import unittest
from pathlib import Path
from typing import Any

FORMULA = "outcome of each test of PyTorch's on both back ends, eight ranks of one host"
WANTED = r"test_(all_reduce|DistributedDataParallel|ddp_|barrier|allgather_object|broadcast_object)"
NEED_A_GPU = r"skip_if_no_gpu|skip_if_lt_x_gpu|cuda|requires_nccl|nccl_only|Gpu"
TORUS = {"LARGEBATCH_ALLREDUCE": "torus", "LARGEBATCH_TORUS": "2x4"}

# Chosen by the environment, as torch's own test files choose it.
if "BACKEND" in os.environ:
    from torch.testing._internal.common_distributed import DistTestCases

    import largebatch.distributed  # noqa: F401  which makes the torus known before torch 2.15

    for _backends in DistTestCases.backend_feature.values():
        if "gloo" in _backends:  # the torus offers what gloo does
            _backends.add("torus")
    from torch.testing._internal.distributed.distributed_test import (
        DistributedTest,
        TestDistBackend,
    )

    class Borrowed(TestDistBackend, DistributedTest._DistTestBase):
        """PyTorch's tests on the back end that the environment names."""

        def setUp(self) -> None:
            super().setUp()
            # Forked: a spawned rank imports torch's test library anew, a minute a test.
            self._start_processes(multiprocessing.get_context("fork").Process)


def names() -> list[str]:
    """Return the tests that need no GPU."""
    every = inspect.getsource(DistributedTest._DistTestBase)
    found = []
    for name, function in inspect.getmembers(Borrowed, inspect.isfunction):
        if re.match(WANTED, name):
            source = _decorators(every, name) + inspect.getsource(inspect.unwrap(function))
            if not re.search(NEED_A_GPU, source):
                found.append(name)
    return found


def _decorators(every: str, name: str) -> str:
    """Return the lines above a test's definition, where its requirements stand."""
    before = every[: every.index(f"def {name}(")].rstrip().splitlines()
    above = []
    while before and before[-1].lstrip().startswith(("@", ")", '"', "BACKEND")):
        above.append(before.pop())
    return "\n".join(above)


class Outcomes(unittest.TextTestResult):
    """Keeps how each test ended."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.ended: dict[str, str] = {}

    def addSuccess(self, test: unittest.TestCase) -> None:
        self.ended[test.id().rpartition(".")[2]] = "passed"

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self.ended[test.id().rpartition(".")[2]] = f"skipped: {reason}"

    def addFailure(self, test: unittest.TestCase, error: Any) -> None:
        self._bad(test, error)

    def addError(self, test: unittest.TestCase, error: Any) -> None:
        self._bad(test, error)

    def _bad(self, test: unittest.TestCase, error: Any) -> None:
        self.ended[test.id().rpartition(".")[2]] = "failed"
        print(test.id(), "".join(traceback.format_exception(*error)), file=sys.stderr)


def run_here(chosen: list[str], file: Path) -> None:
    """Run tests on this process' back end and write how each ended."""
    suite = unittest.TestSuite(Borrowed(name) for name in chosen or names())
    result = unittest.TextTestRunner(resultclass=Outcomes, verbosity=0).run(suite)
    assert isinstance(result, Outcomes)
    file.write_text(json.dumps(result.ended))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tests", nargs="*")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--outcomes", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.outcomes is not None:
        run_here(options.tests, options.outcomes)
        return 0

    import tempfile

    from largebatch.record import BenchmarkRecord, write_record

    ended = {}
    with tempfile.TemporaryDirectory() as folder:
        for backend in ("gloo", "torus"):
            file = Path(folder) / backend
            subprocess.run(
                [sys.executable, __file__, f"--outcomes={file}", *options.tests],
                check=True,
                env={
                    **os.environ,
                    **(TORUS if backend == "torus" else {}),
                    "BACKEND": backend,
                    "WORLD_SIZE": "8",
                    "OMP_NUM_THREADS": "1",
                },
            )
            ended[backend] = json.loads(file.read_text())
    rows = [
        {"test": name, **{backend: ended[backend].get(name, "not run") for backend in ended}}
        for name in sorted(ended["gloo"])
    ]
    record = BenchmarkRecord("torch-ddp-tests", FORMULA, rows)
    print(record.table())
    if options.json:
        write_record(options.json, record)
    worse = [r["test"] for r in rows if r["torus"] == "failed" and r["gloo"] != "failed"]
    counts = {kind: sum(row[kind] == "passed" for row in rows) for kind in ended}
    print(f"of {len(rows)} passed: {counts}; failed on the torus alone: {worse or 'none'}")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
