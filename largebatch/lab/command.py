"""The command `largebatch lab`: run an experiment and compare it with the lecture's claim."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from largebatch._errors import UserError
from largebatch._output import forgive_lost_output
from largebatch._paths import user_path
from largebatch._registry import this_folder_last
from largebatch.lab.everything import perform_all
from largebatch.lab.experiment import experiments
from largebatch.lab.perform import perform, words, write_pictures
from largebatch.record import write_record


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{self.prog}: {message}")


def run(arguments: Sequence[str]) -> int:
    """Run ``largebatch lab ...`` and return its exit code.

    Raises:
        UserError: an option or the experiment's name is wrong.
        RunFailure: some of all experiments failed.
    """
    options = _parser().parse_args(list(arguments))
    if options.seeds is not None and options.seeds < 1:
        raise UserError(f"largebatch lab: --seeds {options.seeds}: at least 1")
    if options.list:
        for entry in experiments:
            what = entry.factory
            print(f"{entry.name:<14} {what.lecture}; {what.minutes:g} min")
            print(f"    {what.claim}")
        return 0
    if options.all:
        if options.name or options.json or options.output:
            raise UserError("largebatch lab --all: takes --folder, no name and no file")
        forgive_lost_output()
        print(perform_all(options.folder, options.quick, options.seeds).table())
        print(f"page: {options.folder / 'index.html'}")
        return 0
    if options.name is None:
        raise UserError("largebatch lab: name an experiment, or --all; --list says which there are")
    with this_folder_last():
        findings, record = perform(options.name, options.quick, options.seeds)
    print(words(record))
    if options.json is not None:
        write_record(options.json, record)
        print(f"record: {options.json}")
    if options.output is not None:
        write_pictures(options.output, findings, record)
        print(f"page: {options.output}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="largebatch lab",
        description="Measure what a lecture claims: the claim, our figures beside the lecture's, a"
        " verdict.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="see --list, or package.module:Class of your own"
    )
    parser.add_argument("--list", action="store_true", help="say which there are")
    parser.add_argument(
        "--all",
        action="store_true",
        help="measure all, into --folder; what lies there is only read, so the same command goes"
        " on",
    )
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--seeds", type=int, metavar="N", help="repetitions; by default 3")
    parser.add_argument("--json", type=user_path, metavar="FILE", help="write the record here")
    parser.add_argument(
        "-o", "--output", type=user_path, metavar="FILE", help="write the page here"
    )
    parser.add_argument(
        "--folder", type=user_path, default=Path("lab"), metavar="DIR", help="of --all; lab"
    )
    return parser
