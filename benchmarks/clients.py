"""Other people's programs and test suites with largebatch in the place of what they came with.

    python benchmarks/clients.py --json benchmarks/results/clients.json [NAME...]
        [--timm DIR]

Each client runs in processes of its own. One whose package is not installed, or whose tests lie in
no checkout given by an option (a wheel has none), is listed as not run. For all of them: `pip
install timm lightning accelerate transformers expecttest pytest`. torch's own tests of collectives
and DistributedDataParallel on back end torus are `benchmarks/torch_ddp_tests.py`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from largebatch.record import BenchmarkRecord, write_record

FORMULA = "outcome of each check: passed, failed with the first line of why, or not run"
PROGRAMS = Path(__file__).parent / "client_programs"
SECONDS = 1800


@dataclass(frozen=True)
class Client:
    """One client.

    Args:
        name: as shown; its program is of this name.
        needs: modules that must be installed.
        checkout: the option that names a clone of its repository, where its tests lie.
        ranks: processes that it runs on.
    """

    name: str
    needs: tuple[str, ...] = ()
    checkout: str | None = None
    ranks: int = 1


CLIENTS = (
    Client("torch_optimizers", ("expecttest",)),
    Client("torch_modules", ("expecttest",)),
    Client("timm_optimizers", ("timm", "pytest"), "timm"),
    Client("timm_norms", ("timm",)),
    Client("lightning_training", ("lightning",)),
    Client("lightning_ddp", ("lightning",), ranks=2),
    Client("accelerate_training", ("accelerate",)),
    Client("transformers_trainer", ("transformers", "accelerate")),
)


def missing(client: Client, checkouts: dict[str, Path | None]) -> str:
    """Return why ``client`` cannot run here, or nothing."""
    absent = [name for name in client.needs if importlib.util.find_spec(name) is None]
    if absent:
        return f"not run: {', '.join(absent)} not installed"
    if client.checkout is not None and checkouts[client.checkout] is None:
        return f"not run: no checkout (--{client.checkout})"
    return ""


def run(client: Client, checkouts: dict[str, Path | None]) -> list[dict[str, Any]]:
    """Run a client; return a row for each of its checks."""
    why = missing(client, checkouts)
    if why:
        return [{"client": client.name, "check": "", "outcome": why}]
    with tempfile.TemporaryDirectory() as folder:
        outcomes = Path(folder, "outcomes.json")
        program = [str(PROGRAMS / f"{client.name}.py"), str(outcomes)]
        if client.checkout is not None:
            program.append(str(checkouts[client.checkout]))
        launcher = [
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={client.ranks}",
        ]
        try:
            done = subprocess.run(
                [sys.executable, *(launcher if client.ranks > 1 else []), *program],
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=SECONDS,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        except subprocess.TimeoutExpired:
            return [{"client": client.name, "check": "", "outcome": f"failed: over {SECONDS} s"}]
        if not outcomes.exists():
            print(done.stdout[-4000:], file=sys.stderr)
            last = (done.stdout.strip().splitlines() or ["nothing printed"])[-1]
            return [{"client": client.name, "check": "", "outcome": f"failed: {last[:120]}"}]
        found: dict[str, str] = json.loads(outcomes.read_text())
    return [{"client": client.name, "check": c, "outcome": o} for c, o in found.items()]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="some of the clients; all by default")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--timm", type=Path, help="a clone of huggingface/pytorch-image-models")
    options = parser.parse_args(arguments)
    unknown = set(options.names) - {client.name for client in CLIENTS}
    if unknown:
        parser.error(f"no client {unknown.pop()!r}: {', '.join(c.name for c in CLIENTS)}")
    checkouts = {"timm": options.timm}
    rows: list[dict[str, Any]] = []
    for client in CLIENTS:
        if not options.names or client.name in options.names:
            rows += run(client, checkouts)
            ours = [row["outcome"] for row in rows if row["client"] == client.name]
            counts = {
                k: sum(o.startswith(k) for o in ours) for k in ("passed", "failed", "not run")
            }
            print(client.name, {kind: count for kind, count in counts.items() if count}, flush=True)
            for row in rows:
                if row["client"] == client.name and not row["outcome"].startswith("passed"):
                    print("   ", row["check"], row["outcome"])
    if options.json:
        write_record(options.json, BenchmarkRecord("clients", FORMULA, rows))
    return 1 if any(row["outcome"].startswith("failed") for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
