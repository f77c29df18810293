"""The command line ``largebatch VERB ...``: one function per verb, without logic of its own."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path

from largebatch import __version__
from largebatch._errors import RunFailure, UserError, nearest
from largebatch._output import take_streams
from largebatch._paths import user_path
from largebatch._start import loading_torch
from largebatch.processes import detect

VERBS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {}

GROUPS = {
    "start": ("init", "train", "recipes", "explain"),
    "look at runs": ("eval", "report", "landscape", "study"),
    "plan and measure": ("plan", "bench", "lab"),
    "this machine": ("doctor", "completion"),
}
"""The verbs as ``largebatch --help`` groups them."""

EXAMPLES = """\
examples:
  largebatch train --run.nproc=2            train on digits with two processes
  largebatch train --help=optim             the keys of a section; --help=all: every key
  largebatch init -o config.yaml            a config to edit, every key explained
  largebatch report RUN RUN -o report.html  runs side by side
  largebatch plan --nodes 8 --device h100   what a cluster would do

largebatch VERB --help says more."""


def _verb(name: str, summary: str) -> Callable[[Callable[[Sequence[str]], int]], object]:
    def enter(function: Callable[[Sequence[str]], int]) -> object:
        VERBS[name] = (function, summary)
        return function

    return enter


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are ours: one line, exit code 2."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{self.prog}: {message}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``largebatch VERB ...`` and return its exit code: 0, 2 on bad input, 1 on failure."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    take_streams()
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except UserError as error:
        return _complain(str(error) if error.one_rank or _first() else "", 2)
    except RunFailure as error:
        return _complain(str(error), 1)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"largebatch {__version__}")
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        raise UserError(f"{verb!r}: choose from {', '.join(VERBS)}{nearest(verb, VERBS)}")
    return VERBS[verb][0](rest)


def _first() -> bool:
    """Whether this is rank 0: all ranks find a mistake together, as a rule, and one says it."""
    try:
        return detect().is_main
    except UserError:
        return True


def _complain(message: str, code: int) -> int:
    if message:
        with suppress(OSError):  # where standard error is gone the code says it
            print(f"largebatch: {message}", file=sys.stderr, flush=True)
    return code


def _usage() -> str:
    lines = ["usage: largebatch VERB [OPTIONS]", ""]
    for group, names in GROUPS.items():
        lines += [f"{group}:", *(f"  {name:<11} {VERBS[name][1]}" for name in names), ""]
    return "\n".join([*lines, EXAMPLES])


@_verb("train", "train a model; the same command continues an interrupted run")
def train(arguments: Sequence[str]) -> int:
    # Before torch is loaded: a lost peer is one line of ours, not pages of torch's C++ frames.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    with loading_torch():
        from largebatch.train.session import train as run

    return run(arguments)


@_verb("init", "write a config to edit, every key explained")
def init(arguments: Sequence[str]) -> int:
    task, rest = None, list(arguments)
    if rest and not rest[0].startswith("-"):
        task, *rest = rest
    parser = _Parser(
        prog="largebatch init",
        usage="largebatch init [TASK] [-o FILE] [--section.key=value ...]",
        description="Write a config to edit, every key explained, for TASK (classification, ...)."
        " Options of largebatch train, such as --recipe NAME, are set in it.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "-o",
        "--output",
        type=user_path,
        default=Path("config.yaml"),
        metavar="FILE",
        help="the file to write; config.yaml",
    )
    options, keys = parser.parse_known_args(rest)
    with loading_torch():
        from largebatch.train.template import init as write

    write(task, keys, options.output)
    return 0


@_verb("eval", "evaluate a run or a checkpoint on its validation set")
def evaluate(arguments: Sequence[str]) -> int:
    parser = _Parser(prog="largebatch eval")
    parser.add_argument("run", type=user_path, help="a run directory or a checkpoint folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--data.root",
        dest="root",
        type=user_path,
        metavar="DIR",
        help="where the data lie now; by default where the run read them",
    )
    parser.add_argument(
        "--allow-imports",
        action="store_true",
        help="import and call what the run's config names as package.module:callable: a config is "
        "code, so only for runs of people whose code you would run",
    )
    parser.add_argument(
        "--dropout",
        type=int,
        default=0,
        metavar="PASSES",
        help="average so many passes with dropout on, and say how far they differ",
    )
    options = parser.parse_args(list(arguments))
    with loading_torch():
        from largebatch.record import json_text
        from largebatch.train.assess import assess

    result = assess(options.run, options.root, options.allow_imports, options.dropout)
    if options.json:
        print(json_text(result))
    else:
        print("  ".join(f"{name} {value:.6g}" for name, value in result.items()))
    return 0


@_verb("bench", "measure a claim beside other code: imagenet, tokens, scaling, optim, norm, ...")
def bench(arguments: Sequence[str]) -> int:
    from largebatch.bench import run

    return run(arguments)


@_verb("study", "ask a question of many runs: carry them out and conclude")
def study(arguments: Sequence[str]) -> int:
    with loading_torch():
        from largebatch.study.command import run

    return run(arguments)


@_verb("lab", "measure what a lecture claims: the claim, figures, a verdict")
def lab(arguments: Sequence[str]) -> int:
    with loading_torch():
        from largebatch.lab.command import run

    return run(arguments)


@_verb("plan", "predict step time and scaling on a cluster, from given constants")
def plan(arguments: Sequence[str]) -> int:
    with loading_torch():
        from largebatch.models import model_of
        from largebatch.plan.command import run

    return run(arguments, model_of)


@_verb("report", "write one report over several runs")
def report(arguments: Sequence[str]) -> int:
    parser = _Parser(prog="largebatch report")
    parser.add_argument("runs", type=user_path, nargs="+", help="run directories")
    parser.add_argument("-o", "--output", type=user_path, default=Path("report.html"))
    options = parser.parse_args(list(arguments))
    from largebatch.report import write_report

    for remark in write_report(options.runs, options.output):
        print(remark, file=sys.stderr)
    print(f"report: {options.output}")
    return 0


@_verb("landscape", "draw the loss around a finished run, or between two")
def landscape(arguments: Sequence[str]) -> int:
    # Before torch is loaded, as for train: its ranks too may lose a peer.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    with loading_torch():
        from largebatch.landscape.command import run

    return run(arguments)


@_verb("recipes", "list the named configs")
def recipes(arguments: Sequence[str]) -> int:
    _Parser(prog="largebatch recipes").parse_args(list(arguments))
    from largebatch.train.recipe import recipe_names, recipe_summary

    for name in recipe_names():
        print(f"{name:<32} {recipe_summary(name)}")
    return 0


@_verb("explain", "say what a named entry is and where it comes from")
def explain(arguments: Sequence[str]) -> int:
    parser = _Parser(prog="largebatch explain")
    parser.add_argument("name", help="a model, data set, optimizer, norm, curve, task or engine")
    options = parser.parse_args(list(arguments))
    from largebatch.train.explain import explain as text

    print(text(options.name))
    return 0


@_verb("completion", "print a script that makes a shell complete verbs, keys and names")
def completion(arguments: Sequence[str]) -> int:
    parser = _Parser(
        prog="largebatch completion",
        description='Print the script: eval "$(largebatch completion bash)", or lay it where the'
        " shell looks for completions.",
    )
    parser.add_argument("shell", help="bash or zsh")
    options = parser.parse_args(list(arguments))
    with loading_torch():
        from largebatch.train.completion import completion as script

    print(script(options.shell, {verb: _options_of(verb) for verb in VERBS}))
    return 0


def _options_of(verb: str) -> list[str]:
    """Return the options that a verb's help names."""
    text = StringIO()
    with redirect_stdout(text), suppress(SystemExit):
        VERBS[verb][0](["--help"])
    found = re.findall(r"(?<![\w.-])--[a-z][a-z-]*(?![\w.-])", text.getvalue())
    return list(dict.fromkeys(found))


@_verb("doctor", "say what this machine has and, for what is absent, why")
def doctor(arguments: Sequence[str]) -> int:
    parser = _Parser(prog="largebatch doctor")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--data", type=user_path, metavar="ROOT", help="decode every image below ROOT"
    )
    parser.add_argument("--build", action="store_true", help="compile the torus schedule now")
    options = parser.parse_args(list(arguments))
    if options.build:
        from largebatch._ops import torus_library

        torus_library.rebuild()
    if options.data is not None:
        from largebatch.data.check import report_images

        return report_images(options.data)
    from largebatch.doctor import collect, print_table, to_json

    checks = collect()
    if options.json:
        print(to_json(checks))
    else:
        print_table(checks)
    return 0
