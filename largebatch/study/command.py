"""`largebatch study`: carry out a study that is named, or write its jobs down."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from largebatch._errors import UserError, nearest, raised
from largebatch._output import forgive_lost_output
from largebatch._paths import user_path
from largebatch._registry import this_folder_last
from largebatch.record import BenchmarkRecord, write_record
from largebatch.study.carry_out import Survey, carry_out, owned
from largebatch.study.commands import write_commands
from largebatch.study.study import Study, studies
from largebatch.train.parse import options_of


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"largebatch study: {message}")


def run(arguments: Sequence[str]) -> int:
    """Run ``largebatch study NAME ...`` and return its exit code."""
    arguments = list(arguments)
    if "--list" in arguments:
        for entry in studies:
            print(f"{entry.name:<16} {entry.summary}")
            for option in _options(entry.factory):
                print(f"    {option}")
        return 0
    if not arguments or arguments[0].startswith("-"):
        if {"-h", "--help"} & set(arguments):
            _parser("NAME").print_help()
            return 0
        raise UserError(
            f"largebatch study: name one of {', '.join(studies.names())}, or"
            " package.module:callable; --list says more"
        )
    with this_folder_last():
        return run_study(studies.entry(arguments[0]).factory, arguments[0], arguments[1:])


def run_study(factory: Callable[..., Study], name: str, arguments: Sequence[str]) -> int:
    """Carry out the study that ``factory`` makes of the command line's options.

    Raises:
        UserError: an option is unknown or of another type, or a job is refused.
        RunFailure: jobs failed, or the study was stopped.
    """
    options, rest = _parser(name).parse_known_args(list(arguments))
    study = _made(factory, name, rest)
    folder: Path = options.folder
    if options.commands:
        with owned(folder):
            survey = Survey(study, folder)
            waiting = survey.ask()
            if waiting:
                commands, array = write_commands(waiting, folder)
                print(f"{len(waiting)} of {len(survey.places)} jobs to do")
                print(f"commands: {commands}")
                print(f"Slurm: sbatch {array}")
                print("when they are done, the same command goes on")
                return 0
            record = study.conclude(survey.done)
    else:
        forgive_lost_output()
        record = carry_out(study, folder, options.at_a_time)
    _write(record, options.json or folder / "record.json")
    return 0


def _write(record: BenchmarkRecord, path: Path) -> None:
    print(record.table())
    write_record(path, record)
    print(f"record: {path}")


def _parser(name: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"largebatch study {name}",
        description="Carry out a study; the same command goes on. --key=value sets an option of"
        " its own, see --list.",
        allow_abbrev=False,
    )
    parser.add_argument("--folder", type=user_path, required=True, help="where its runs lie")
    parser.add_argument(
        "--at-a-time", type=int, default=1, metavar="N", help="jobs that run at once"
    )
    parser.add_argument(
        "--commands",
        action="store_true",
        help="start nothing: write the jobs as commands and as a Slurm array; conclude if all are"
        " done",
    )
    parser.add_argument("--json", type=user_path, help="the record's file; FOLDER/record.json")
    return parser


def _made(factory: Callable[..., Study], name: str, arguments: Iterable[str]) -> Study:
    """Call a study's factory with options of its own."""
    given: dict[str, str] = {}
    known = inspect.signature(factory).parameters
    for argument in arguments:
        key, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not equals:
            raise UserError(f"{argument!r}: a study's own options are written --key=value")
        if key not in known:
            raise UserError(
                f"--{key}: study {name} has {', '.join(known) or 'no options'}{nearest(key, known)}"
            )
        given[key] = value
    values: dict[str, Any] = options_of(factory, given, f"study {name}")
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in values:
            raise UserError(f"study {name}: --{key}=VALUE is missing")
    try:
        study = factory(**values)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"study {name}: to make it raised {raised(error)}") from error
    if not isinstance(study, Study):
        raise UserError(f"study {name}: {type(study).__name__} is no largebatch.study.Study")
    return study


def _options(factory: Callable[..., Study]) -> Iterable[str]:
    for key, parameter in inspect.signature(factory).parameters.items():
        default = "" if parameter.default is parameter.empty else f" ({parameter.default!r})"
        yield f"--{key}={str(parameter.annotation).removeprefix('typing.')}{default}"
