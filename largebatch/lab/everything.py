"""Run all experiments one after the other into a folder; finished ones are only read."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path

from largebatch._errors import RunFailure, raised
from largebatch.lab.experiment import experiments
from largebatch.lab.perform import file_stem, listed, perform, seeds_of, write_pictures
from largebatch.record import BenchmarkRecord, read_record, write_atomically, write_record
from largebatch.report.record_page import write_page
from largebatch.train.progress import say


def perform_all(folder: Path, quick: bool, seeds: int | None) -> BenchmarkRecord:
    """Measure every experiment and write records, pages, and lab.json and index.html over all.

    Raises:
        UserError: ``folder`` cannot be written, or a record in it is damaged.
        RunFailure: experiments failed, named after the others are done.
    """
    entries = list(experiments)
    done: dict[str, BenchmarkRecord] = {}
    for entry in entries:
        path = _record_path(folder, entry.name)
        if path.exists():
            record = read_record(path)
            size = (quick, len(seeds_of(entry.factory, quick, seeds)))
            if (record.details.get("quick"), record.details.get("seeds")) == size:
                done[entry.name] = record
    waiting = {e.name: 1.0 if quick else e.factory.minutes for e in entries if e.name not in done}
    _write_summary(folder, done)  # which says before the work whether the folder can be written
    if done:
        say(f"{len(done)} of {len(entries)} are done: read")
    failed, took, expected = [], 0.0, 0.0
    for number, name in enumerate(list(waiting), 1 + len(done)):
        left = f", {_clock(sum(waiting.values()) * took / expected)} left" if expected else ""
        say(f"[{number}/{len(entries)}] {name}{left}")
        began = time.monotonic()
        trace = _record_path(folder, name).with_suffix(".failed.txt")
        try:
            findings, record = perform(name, quick, seeds)
            write_pictures(_record_path(folder, name).with_suffix(".html"), findings, record)
        except Exception as error:
            failed.append(name)
            print(f"{name} failed: {raised(error)}; {trace}", file=sys.stderr, flush=True)
            trace.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(trace, traceback.format_exc())
        else:
            write_record(_record_path(folder, name), record)
            trace.unlink(missing_ok=True)
            done[name] = record
            say(f"    {record.details['verdict']}")
        took += time.monotonic() - began
        expected += waiting.pop(name)
    summary = _write_summary(folder, done)
    if failed:
        raise RunFailure(f"lab: {len(failed)} of {len(entries)} failed: {', '.join(failed)}")
    return summary


def _write_summary(folder: Path, done: Mapping[str, BenchmarkRecord]) -> BenchmarkRecord:
    summary = summary_of([done[name] for name in experiments.names() if name in done])
    write_record(folder / "lab.json", summary)
    _write_index(folder / "index.html", summary)
    return summary


def summary_of(records: list[BenchmarkRecord]) -> BenchmarkRecord:
    """Return one record over many: a row each, and every check in the details."""
    minutes = sum(record.details["minutes"] for record in records)
    return BenchmarkRecord(
        "lab",
        "minutes: of the measurement, on this machine; claimed and measured: of the first check",
        [listed(record) for record in records],
        notes=[f"{minutes:.1f} minutes in all"],
        details={record.details["experiment"]: record.details for record in records},
    )


def _write_index(path: Path, summary: BenchmarkRecord) -> None:
    from markupsafe import Markup

    link = Markup('<a href="{}.html">{}</a>')
    rows = [
        {**row, "experiment": link.format(file_stem(row["experiment"]), row["experiment"])}
        for row in summary.rows
    ]
    linked = BenchmarkRecord("lab", summary.formula, rows, summary.environment, summary.notes)
    write_page(path, linked, [], "The lectures' experiments")


def _record_path(folder: Path, name: str) -> Path:
    return folder / f"{file_stem(name)}.json"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
