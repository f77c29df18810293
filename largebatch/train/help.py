"""The text of `train --help`: the keys that a first run needs, or the keys of one section."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence

from largebatch._errors import UserError, nearest
from largebatch.tasks import config_of, tasks
from largebatch.train.key_table import MAIN, Key, key_table, section_texts

USAGE = """\
usage: largebatch train [--config FILE | --recipe NAME] [--section.key=value ...]

Train; the same command continues an interrupted run.

  --config FILE       YAML; later files and options override it
  --recipe NAME       a named config; see `largebatch recipes`
  --print_config      print every key with its value as YAML, and stop
  --help=SECTION      the keys of one section:
{sections}
  --help=all          every key
"""
EXAMPLES = """\
examples:
  largebatch train --run.nproc=2
  largebatch train --recipe hoffer-f1-mnist-ghost --data.root=DATA
  largebatch train --data.name=cifar10 --data.root=DATA --model.name=cifar_resnet56 \\
      --batch.size=8192 --batch.reference=256 --optim.scaling=linear --schedule.length=90ep"""


def asked(arguments: Sequence[str]) -> str | None:
    """Return the section that the last ``--help`` of a command line names; "" if none."""
    found = [each for each in arguments if each in ("-h", "--help") or each[:7] == "--help="]
    return found[-1].partition("=")[2] if found else None


def help_text(section: str) -> str:
    """Return the help text of the main keys, or of the keys of ``section``.

    Raises:
        UserError: there is no such section.
    """
    keys, about = key_table(), section_texts()
    sections = list(dict.fromkeys(key.section for key in keys))
    if not section:
        usage = USAGE.format(sections=_wrapped(", ".join(sections), 22))
        rows = _rows(key for name in MAIN for key in keys if key.name == name)
        return "\n".join([usage, "main keys:", *rows, "", EXAMPLES])
    if section not in sections:
        raise UserError(
            f"--help={section}: choose from all, {', '.join(sections)}{nearest(section, sections)}"
        )
    if section == "task":
        return "\n".join(_of_tasks())
    rows = _rows(key for key in keys if key.section == section)
    return "\n".join([f"{section}: {about.get(section, 'a key by itself')}", *rows])


def _of_tasks() -> Iterator[str]:
    """Yield the keys that the section has under each task."""
    for entry in tasks:
        yield f"task, with task.name={entry.name}: {entry.summary}"
        yield from _rows(key for key in key_table(config_of(entry.name)) if key.section == "task")


def _rows(keys: Iterable[Key]) -> Iterable[str]:
    for key in keys:
        default = "" if key.default in (None, [], {}) else f" [{key.default}]"
        head = f"  --{key.name}"
        body = _wrapped(f"{key.text}{default}", 28)
        yield f"{head:<26}  {body.lstrip()}" if len(head) < 27 else f"{head}\n{body}"


def _wrapped(text: str, indent: int) -> str:
    return textwrap.fill(
        text,
        100,
        initial_indent=" " * indent,
        subsequent_indent=" " * indent,
        break_on_hyphens=False,
        break_long_words=False,
    )
