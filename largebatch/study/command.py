"""The command `largebatch study`: carry out a named study, or write its jobs as commands."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path

from largebatch._errors import UserError, raised
from largebatch._output import forgive_lost_output
from largebatch._paths import user_path
from largebatch._registry import this_folder_last
from largebatch.record import BenchmarkRecord, write_record
from largebatch.study.carry_out import Survey, carry_out, owned, require_runnable
from largebatch.study.commands import write_commands
from largebatch.study.grid import plain
from largebatch.study.options import described, read_options
from largebatch.study.study import Study, studies


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"largebatch study: {message}")


def run(arguments: Sequence[str]) -> int:
    """Run ``largebatch study NAME ...`` and return its exit code."""
    arguments = list(arguments)
    if "--list" in arguments:
        for entry in studies:
            print(f"{entry.name:<16} {entry.summary}")
            for option in described(entry.factory):
                print(f"    {option}")
        return 0
    if not arguments or arguments[0].startswith("-"):
        if {"-h", "--help"} & set(arguments):
            study_parser("NAME").print_help()
            return 0
        raise UserError(
            f"largebatch study: name one of {', '.join(studies.names())}, or"
            " package.module:callable; --list says more"
        )
    with this_folder_last():
        return run_study(studies.entry(arguments[0]).factory, arguments[0], arguments[1:])


def run_study(factory: Callable[..., Study], name: str, arguments: Sequence[str]) -> int:
    """Carry out the study that ``factory`` makes from the options on the command line.

    Raises:
        UserError: an option is unknown or of another type, or a job is refused.
        RunFailure: jobs failed, or the study was stopped.
    """
    parser = study_parser(name)
    parser.epilog = inspect.getdoc(factory)
    options, rest = _divided(parser, arguments)
    study = _made(factory, name, rest)
    folder: Path = options.folder or Path("studies") / plain(name)
    if not list(study.jobs({})):  # all that it asks is known
        if options.commands is not None:
            raise UserError(f"study {name}: it has no jobs to write; leave --commands out")
        _write(study, study.conclude({}), options.folder, options)
        return 0
    if options.commands is not None:
        with owned(folder):
            survey = Survey(study, folder)
            waiting = survey.ask()
            require_runnable(waiting)
            for line in study.says(survey.done):
                print(line)
            if waiting:
                commands, array = write_commands(waiting, folder, options.commands)
                print(f"{len(waiting)} of {len(survey.places)} jobs to do")
                print(f"commands: {commands}")
                print(f"Slurm: sbatch {array}")
                print("when they are done, the same command goes on")
                return 0
            record = study.conclude(survey.done)
    else:
        forgive_lost_output()
        record = carry_out(study, folder, options.at_a_time)
    _write(study, record, folder, options)
    return 0


def _divided(
    parser: argparse.ArgumentParser, arguments: Sequence[str]
) -> tuple[argparse.Namespace, list[str]]:
    """Parse what every study has; return it and the rest.

    argparse takes an option that it does not know for a value if there is a space in it, so that it
    is shown its own options and their values alone.
    """
    known = {f"--{name.replace('_', '-')}" for name in vars(parser.parse_args([]))}
    known |= {"-h", "--help"}
    own: list[str] = []
    rest: list[str] = []
    into = rest
    for argument in arguments:
        if argument.startswith("--") or argument in known:
            into = own if argument.partition("=")[0] in known else rest
        into.append(argument)
    options, left = parser.parse_known_args(own)
    return options, [*left, *rest]


def _write(
    study: Study, record: BenchmarkRecord, folder: Path | None, options: argparse.Namespace
) -> None:
    """Print the record, and write it and its page where there is a place for them."""
    print(record.table())
    path = options.json or (folder and folder / "record.json")
    if path is not None:
        write_record(path, record)
        print(f"record: {path}")
    page = options.html or (folder and folder / "report.html")
    if page is not None:
        drawn = study.draw(record, page)
        print(f"page: {page}" if drawn else "page: none, this study draws no charts")


def study_parser(name: str) -> argparse.ArgumentParser:
    """Return the parser of the options that every study has."""
    parser = _Parser(
        prog=f"largebatch study {name}",
        description="Carry out a study; the same command goes on. --key=value sets an option of"
        " its own, and most\nstudies take the options of largebatch train. --list names the"
        " studies.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--folder", type=user_path, help="where its runs lie; by default studies/NAME"
    )
    parser.add_argument(
        "--at-a-time", type=int, default=1, metavar="N", help="jobs that run at once"
    )
    parser.add_argument(
        "--commands",
        nargs="?",
        type=user_path,
        const=Path(),
        metavar="FILE",
        help="start nothing: write the jobs as a list of commands (FOLDER/jobs/commands.txt) and,"
        " beside it, as a Slurm array; conclude if all are done",
    )
    parser.add_argument("--json", type=user_path, help="the record's file; FOLDER/record.json")
    parser.add_argument("--html", type=user_path, help="the page's file; FOLDER/report.html")
    return parser


def _made(factory: Callable[..., Study], name: str, arguments: Sequence[str]) -> Study:
    """Call a study's factory with options of its own."""
    values = read_options(factory, name, arguments)
    try:
        study = factory(**values)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"study {name}: to make it raised {raised(error)}") from error
    if not isinstance(study, Study):
        raise UserError(f"study {name}: {type(study).__name__} is no largebatch.study.Study")
    return study
