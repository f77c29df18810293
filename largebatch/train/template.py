"""The command `largebatch init`: write a config to start from, with a comment on every key."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from largebatch._documents import dump_yaml
from largebatch._errors import UserError
from largebatch.record import write_atomically
from largebatch.train.check import check
from largebatch.train.config import Config
from largebatch.train.key_table import MAIN, Key, key_table, section_texts
from largebatch.train.parse import flat, parse

HEAD = """\
# A config of largebatch, for `largebatch train --config {file}`; options that follow override it.
# The keys that a first run is about, and those that were set, stand below; the others are switched
# off by a #, with their defaults. Times have a unit: 90ep epochs, 1.28Msa samples, 500st steps, 5%.
"""


def init(task: str | None, arguments: Sequence[str], output: Path) -> None:
    """Write a commented config.

    Args:
        task: name of the task, as in ``task.name``; None: the default task.
        arguments: options of ``largebatch train`` to set in the config.
        output: path of the file to write.

    Raises:
        UserError: a key is unknown or wrong, keys contradict each other, the file is there already
            or cannot be written.
    """
    config = parse([*([f"--task.name={task}"] if task else []), *arguments])
    check(config)
    if output.exists():
        raise UserError(f"{output}: exists already; name another file by -o FILE")
    try:
        write_atomically(output, commented(config, output.name))
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror})") from None
    print(f"config: {output}; edit it, then: largebatch train --config {output}")


def commented(config: Config, name: str = "config.yaml") -> str:
    """Return ``config`` as YAML with every key; keys at their defaults are commented out."""
    table, values = key_table(type(config.task)), flat(config)
    about = section_texts(type(config.task))
    parts = [HEAD.format(file=name)]
    for section in dict.fromkeys(key.section for key in table):
        keys = [key for key in table if key.section == section]
        shown = [key for key in keys if key.name in MAIN or values[key.name] != key.default]
        if section not in about:  # a key by itself
            parts += [*_wrapped(keys[0].text, ""), _line(keys[0], values[section], "", shown)]
            parts.append("")
            continue
        parts.append(f"{'' if shown else '#'}{section}:  # {about[section]}")
        for key in keys:
            parts += [*_wrapped(key.text, "  "), _line(key, values[key.name], "  ", shown)]
        parts.append("")
    return "\n".join(parts)


def _line(key: Key, value: object, indent: str, shown: Sequence[Key]) -> str:
    text = dump_yaml({key.name.rpartition(".")[2]: value}, in_one_line=True).strip()
    return f"{'' if key in shown else '#'}{indent}{text[1:-1]}"


def _wrapped(text: str, indent: str) -> Iterator[str]:
    lead = f"{indent}# "
    yield from textwrap.wrap(text, 100, initial_indent=lead, subsequent_indent=lead)
