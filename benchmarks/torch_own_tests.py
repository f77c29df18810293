"""PyTorch's own test files, unchanged, on ours in the place of what they were written for.

    python benchmarks/torch_own_tests.py --torch-source DIR [SUITE...]
        --json benchmarks/results/torch_own_tests.json

DIR is a checkout or an unpacked source of PyTorch, near the installed version (no wheel holds these
files). ``optimizers``: test_optim.py's TestOptimRenewed through SGD, SGDW, LARS, LAMB and
RMSpropWarmup. ``norms``: test_modules.py through seven norms. ``gloo``: ProcessGroupGlooTest of
test_c10d_gloo.py on back end torus, four ranks, grid 2 x 2. Each also runs on torch's own in the
same command; of ours, a failure of what torch's own passes is named with its first line, and with
its reason where it has one. Ends with 1 if there is one without. `pip install expecttest
hypothesis parameterized pytest`, which torch's tests import.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from largebatch.record import BenchmarkRecord, write_record

FORMULA = "tests passed, failed and skipped, of torch's own and of ours in its place, same command"
PROGRAM = Path(__file__).parent / "client_programs" / "torch_own.py"
SECONDS = 1800
SIDES = {
    "optimizers": ("torch", "ours"),
    "norms": ("torch", "ours"),
    "gloo": ("torch", "dispatched", "ours"),
}
PLACES = {"SGD": "SGD", "SGDW": "SGD", "LARS": "SGD", "LAMB": "Adam", "RMSpropWarmup": "RMSprop"}

_DISPATCHER = "the dispatcher's error text: gloo fails alike behind init_process_group"
REASONS = {
    r"test_errors_(SGD|SGDW|LARS|LAMB|RMSpropWarmup)_": (
        "wants torch's words, and the rate to be looked at before parameters that are None; with"
        " parameters ours raise errors of the same classes"
    ),
    r"test_fused_error_on_params_on_meta_": "wants torch's words; ours refuse as well",
    r"test_param_groups_lr_RMSpropWarmup_": (
        "its rate is relative to the group's first one, so a first rate of 1e-28 is a full one"
    ),
    r"test_step_is_noop_for_zero_grads_LAMB_": "LAMB's default weight decay is 0.01, not 0",
    r"test_set_gloo_pg_timeout": "an attribute of gloo's own class, which its dispatcher lacks too",
    r"test_allreduce_coalesced_checks": "ours take tensors of different types and layouts",
    r"test_(allgather|allreduce|broadcast|gather|scatter|sparse_allreduce)_checks": _DISPATCHER,
}
"""Why a test fails that is to stay so."""


def run(source: Path, suite: str, side: str) -> dict[str, str]:
    """Run a file of torch's on one side; return how each test ended."""
    with tempfile.TemporaryDirectory() as folder:
        outcomes = Path(folder, "outcomes.json")
        command = [sys.executable, str(PROGRAM), str(outcomes), str(source / "test"), suite, side]
        done = subprocess.run(
            command,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "DISTRIBUTED_TESTS_DEFAULT_TIMEOUT": "120",  # of torch's, in seconds
            },
        )
        if not outcomes.exists():
            print(done.stdout[-4000:], file=sys.stderr)
            raise SystemExit(f"{suite} on {side}: no test ran")
        found: dict[str, str] = json.loads(outcomes.read_text())
    return found


def subject(suite: str, test: str, side: str) -> tuple[str, str]:
    """Return what a test is about, and the name of torch's own test of what that stands for."""
    if suite == "gloo":
        return {"torch": "gloo", "dispatched": "gloo behind the dispatcher"}.get(
            side, "torus"
        ), test
    if suite == "optimizers":
        for name, place in PLACES.items():
            if side == "ours" and f"_{name}_cpu" in test:
                return name, test.replace(f"_{name}_cpu", f"_{place}_cpu")
        return re.sub(r".*_([A-Za-z]+)_cpu.*", r"torch's \1", test), test
    found = re.search(r"_([A-Z][A-Za-z0-9]*?)BatchNorm\dd_", test)
    if side == "torch" or found is None:
        return "torch's BatchNorm", test
    return found[1], test.replace(found[1] + "BatchNorm", "nn_BatchNorm")


def counted(suite: str, side: str, ended: dict[str, dict[str, str]]) -> list[dict[str, Any]]:
    """Return a row for each subject of a side: how its tests ended.

    Not applicable is what torch's own passes in its place and that it has no test for.
    """
    counts: dict[str, Counter[str]] = {}
    owns: dict[str, set[str]] = {}
    for test, outcome in ended[side].items():
        what, own = subject(suite, test, side)
        kind = outcome.partition(":")[0].replace("not run", "skipped")
        counts.setdefault(what, Counter())[kind] += 1
        owns.setdefault(what, set()).add(own)
    rows = []
    for what, count in sorted(counts.items()):
        row: dict[str, Any] = {"suite": suite, "what": what}
        row |= {kind: count[kind] for kind in ("passed", "failed", "skipped")}
        if suite == "optimizers" and side == "ours":
            place = [t for t in ended["torch"] if f"_{PLACES[what]}_cpu" in t]
            lacks = [t for t in place if ended["torch"][t] == "passed" and t not in owns[what]]
            row["not applicable"] = len(lacks)
        rows.append(row)
    return rows


def failures(suite: str, ended: dict[str, dict[str, str]]) -> list[dict[str, Any]]:
    """Return a row for each test that ours fail and torch's own passes."""
    rows = []
    for test, outcome in sorted(ended["ours"].items()):
        what, own = subject(suite, test, "ours")
        if not outcome.startswith("failed") or ended["torch"].get(own) != "passed":
            continue
        row = {"suite": suite, "what": what, "test": test}
        if "dispatched" in ended:
            row["behind the dispatcher"] = ended["dispatched"][test].partition(":")[0]
        line = re.sub(r"(/[\w.+-]+){2,}", "...", outcome.removeprefix("failed: "))
        reason = next((why for name, why in REASONS.items() if re.match(name, test)), "")
        if reason is _DISPATCHER and row["behind the dispatcher"] == "passed":
            reason = ""
        rows.append({**row, "error": line, "reason": reason or "none known"})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suites", nargs="*", help=f"of {', '.join(SIDES)}; all by default")
    parser.add_argument("--torch-source", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    unknown = set(options.suites) - set(SIDES)
    if unknown:
        parser.error(f"no suite {unknown.pop()!r}: {', '.join(SIDES)}")
    if not (options.torch_source / "test" / "test_optim.py").exists():
        parser.error("--torch-source: no test/test_optim.py there")
    source = options.torch_source.resolve()
    counts, bad = [], []
    for suite in options.suites or SIDES:
        ended = {}
        for side in SIDES[suite]:
            ended[side] = run(source, suite, side)
            counts += (rows := counted(suite, side, ended))
            print(*rows, sep="\n", flush=True)
        bad += (rows := failures(suite, ended))
        print(*rows, sep="\n", flush=True)
    file = source / "version.txt"
    version = file.read_text().strip() if file.exists() else "of an unknown version"
    record = BenchmarkRecord(
        "torch-own-tests",
        FORMULA,
        [*counts, *bad],
        notes=[f"tests of PyTorch {version}, run on torch {torch.__version__}"],
    )
    if options.json:
        write_record(options.json, record)
    unexplained = [row["test"] for row in bad if row["reason"] == "none known"]
    print(f"failed without a known reason: {unexplained or 'none'}")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
