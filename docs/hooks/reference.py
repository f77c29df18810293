"""Reference pages made from the code: every key, every verb, the public names of every room."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
from collections.abc import Iterator
from typing import Any

API = {
    "train": "One run from Python: `run(config)`, and what has come of it.",
    "optim": "Optimizers, parameter groups, clipping.",
    "nn": "Norms over ghost batches, fixed classifiers, networks without norms.",
    "schedule": "Durations, batch plans and rate curves, all functions of samples seen.",
    "distributed": "The torus: a back end, a hook, a function; the cost model.",
    "tasks": "What a step means: the base class of tasks and what there is.",
    "probes": "Instruments on a live run, and the noise scale's estimator.",
    "weight_space": "Directions, paths and smoothing of the loss as a function of the weights.",
    "study": "Questions asked of many runs.",
    "record": "Run directories, metrics, records of benchmarks.",
}
"""Rooms whose public names (``__all__``) are for users, and what each is about."""

HEAD = "<!-- made by docs/hooks/reference.py from the code -->\n\n"


def keys_page() -> str:
    """Return every key of a config with type, choices, default and meaning."""
    from largebatch.tasks import config_of, tasks
    from largebatch.train.key_table import MAIN, key_table, section_texts

    table, about = key_table(), section_texts()
    main = ", ".join(f"`{name}`" for name in MAIN)
    parts = [
        f"{HEAD}# Keys of a config",
        "Keys are written in YAML, or as `--section.key=value` on the command line. "
        "A key is **free** where it may differ between a run and its continuation, and "
        "**of a rank** where it may differ between the ranks of a run. `null` means that nothing "
        "is set. A *duration* is a number with its unit: `90ep` (epochs), `1.28Msa` (samples), "
        "`500st` (steps) or `5%` of the run.",
        f"A first run is about these: {main}.",
    ]
    for section in dict.fromkeys(key.section for key in table):
        keys = [key for key in table if key.section == section]
        parts.append(f"## {section}")
        if section in about:
            parts.append(about[section])
        parts.append(_key_rows(keys))
    for entry in tasks:
        own = config_of(entry.name)
        keys = [key for key in key_table(own) if key.section == "task"]
        parts += [f"## task, where task.name={entry.name}", entry.summary, _key_rows(keys)]
    return "\n\n".join(parts) + "\n"


def _key_rows(keys: list[Any]) -> str:
    lines = ["| key | default | allowed | meaning |", "|---|---|---|---|"]
    for key in keys:
        default = "null" if key.default is None else str(key.default) or '""'
        marks = [" *Free.*"] * key.is_free + [" *Of a rank.*"] * key.is_of_rank
        cells = (f"`{key.name}`", f"`{default}`", key.allowed, key.text + "".join(marks))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def entries_page() -> str:
    """Return every name that a config can choose, with its paper and its facts."""
    from largebatch.train.explain import KNOWN

    parts = [
        f"{HEAD}# Names that a config can choose",
        "`largebatch explain NAME` prints the same and the documentation of the entry. Where the "
        "heading says so, `package.module:callable` names one of your own.",
    ]
    for registry in KNOWN:
        own = ", or `package.module:callable`" if registry.importable else ""
        rows = [
            (f"`{entry.name}`", entry.summary, entry.source, "; ".join(entry.facts.words()))
            for entry in registry
        ]
        cells = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
        lines = ["| name | what it is | source | facts |", "|---|---|---|---|"]
        lines += [f"| {row} |" for row in cells]
        parts += [f"## {registry.key}", f"One of these{own}.", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def verbs_page() -> str:
    """Return the help of the command and of every verb, as it prints them."""
    from largebatch.cli import VERBS

    parts = [
        f"{HEAD}# Verbs of the command",
        "A verb ends with 0 on success, with 2 and one line on bad input, and with 1 on failure. "
        "`python -m largebatch` is the same command.",
        _block("largebatch --help"),
    ]
    for verb in VERBS:
        parts += [f"## {verb}", _block(f"largebatch {verb} --help")]
        if verb in ("study", "lab") and printed([verb, "--list"]):
            parts.append(_block(f"largebatch {verb} --list"))
    return "\n\n".join(parts) + "\n"


def _block(command: str) -> str:
    return f"```text\n$ {command}\n{printed(command.split()[1:])}\n```"


def printed(arguments: list[str]) -> str:
    """Return what the command prints, called in this process."""
    from largebatch.cli import main

    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        assert main(arguments) == 0, arguments
    return text.getvalue().strip()


def api_index() -> str:
    """Return the list of rooms with public names."""
    rows = [f"| [`largebatch.{room}`]({room}.md) | {about} |" for room, about in API.items()]
    return "\n".join(
        [
            f"{HEAD}# Public names",
            "",
            "`import largebatch`, `.nn`, `.optim` and `.schedule` need torch alone.",
            "",
            "| import from | for |",
            "|---|---|",
            *rows,
            "",
        ]
    )


def api_page(room: str) -> str:
    """Return a page of mkdocstrings' directives, one for each public name of a room."""
    module = importlib.import_module(f"largebatch.{room}")
    parts = [f"{HEAD}# `largebatch.{room}`", inspect.getdoc(module) or API[room]]
    for name in sorted(_documented(module), key=str.lower):
        parts.append(f"::: {_place(module, name)}")
    return "\n\n".join(parts) + "\n"


def _documented(module: Any) -> Iterator[str]:
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            yield name


def _place(module: Any, name: str) -> str:
    """Return where a public name is defined, which is where its source is read."""
    value = getattr(module, name)
    return f"{value.__module__}.{value.__qualname__}"
