"""Measure all-reduces over a matrix of hosts, ranks, rates and sizes: one command, one JSON file.

    sudo python benchmarks/netlab/matrix.py --grids 2x4 4x2 --rates 200 --sizes 16.8

A grid is hosts x ranks per host. The bound is 2 (Y-1)/Y of the message over a host's link at its
nominal rate: what the best all-reduce must send whatever its algorithm (Patarasuk and Yuan 2009);
half of it for a 16-bit wire. Ratios are of medians over rounds in which all kinds take turns; flat
takes two turns a round, and `auto` may be slower than flat by what flat and flat differ at most.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from lab import Lab

from largebatch.record import BenchmarkRecord, write_record

FORMULA = "bound = 2 (Y-1)/Y S / link rate; speedup = flat / kind, of medians"
WORKER = Path(__file__).parent / "worker.py"


def bound_ms(hosts: int, megabytes: float, rate: float, kind: str) -> float:
    """Return the milliseconds that a host's link takes for what must cross it."""
    share = 0.5 if "bf16" in kind else 1.0
    return 2 * (hosts - 1) / hosts * megabytes * 8 / rate * 1e3 * share


def measure(hosts: int, ranks: int, rate: float, options: argparse.Namespace) -> dict[str, Any]:
    """Run one lab and return what its rank 0 wrote."""
    with tempfile.TemporaryDirectory() as folder, Lab(hosts, rate) as lab:
        result = Path(folder, "result.json")
        arguments = ["measure", f"--json={result}", f"--repeat={options.repeat}"]
        arguments += ["--sizes", *map(str, options.sizes), "--kinds", *options.kinds]
        arguments += [f"--chunks={options.chunks}"] if options.chunks else []
        processes = lab.torchrun(ranks, WORKER, arguments)
        outputs = [process.communicate(timeout=options.timeout)[0] for process in processes]
        if not result.exists():
            raise RuntimeError("netlab: the ranks failed:\n" + "\n".join(outputs))
        return dict(json.loads(result.read_text()))


def verdict(records: list[dict[str, Any]]) -> list[str]:
    """Say whether `auto` was ever slower than flat by more than flat than itself."""
    medians: dict[tuple[Any, ...], dict[str, float]] = {}
    for line in records:
        cell = (line["hosts"], line["ranks"], line["mbit"], line["megabytes"])
        medians.setdefault(cell, {})[line["kind"]] = line["median_ms"]
    cells = [found for found in medians.values() if {"flat", "flat again", "auto"} <= found.keys()]
    if not cells:
        return []
    best = [min(cell["flat"], cell["flat again"]) for cell in cells]
    worst = [max(cell["flat"], cell["flat again"]) for cell in cells]
    spread = max(one / other - 1 for one, other in zip(worst, best, strict=True))
    slower = max(cell["auto"] / other - 1 for cell, other in zip(cells, best, strict=True))
    return [
        f"auto took {slower:+.1%} of flat's better time at most, flat's worse {spread:+.1%},"
        f" over {len(cells)} cells: {'met' if slower <= spread else 'missed'}"
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grids", nargs="+", default=["2x4", "4x2"], help="hosts x ranks")
    parser.add_argument("--rates", type=float, nargs="+", default=[200.0], help="Mbit/s")
    parser.add_argument("--sizes", type=float, nargs="+", default=[16.8], help="MB")
    kinds = ["flat", "torus", "torus bf16", "auto"]
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--chunks", type=int, help="of the torus; by default as it is chosen")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds for one lab")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    records = []
    for grid in options.grids:
        hosts, ranks = map(int, grid.split("x"))
        for rate in options.rates:
            found = measure(hosts, ranks, rate, options)
            if found["selection"]:
                print(f"{grid} at {rate:g} Mbit/s, auto: {found['selection']}")
            for line in found["records"]:
                bound = bound_ms(hosts, line["megabytes"], rate, line["kind"])
                flat = next(
                    other["median_ms"]
                    for other in found["records"]
                    if other["kind"] == "flat" and other["megabytes"] == line["megabytes"]
                )
                line |= {"hosts": hosts, "ranks": ranks, "mbit": rate, "bound_ms": bound,
                         "over_bound": line["median_ms"] / bound,
                         "speedup": flat / line["median_ms"]}  # fmt: skip
                records.append(line)
                print(
                    f"{grid} {rate:6g} Mbit/s {line['megabytes']:6g} MB  {line['kind']:<11}"
                    f" {line['median_ms']:8.1f} ms ({line['min_ms']:.0f} to {line['max_ms']:.0f})"
                    f"  {line['speedup']:5.2f}x flat  {line['over_bound']:5.2f}x bound"
                    f"  {line['algorithm']}, {line['chunks']} chunks",
                    flush=True,
                )
            if options.json:  # after every lab: a later one may fail
                notes = verdict(records)
                write_record(options.json, BenchmarkRecord("netlab", FORMULA, records, notes=notes))
    print(*verdict(records), sep="\n")


if __name__ == "__main__":
    main()
