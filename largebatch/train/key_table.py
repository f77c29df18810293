"""A table of all config keys: type in words, default, and the text below the field.

`train --help`, `largebatch init`, shell completion and the documentation's reference are made from
this table, so that all agree.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from itertools import pairwise
from typing import Any, get_type_hints

from largebatch.train.config import FREE_KEYS, RANK_KEYS, Config
from largebatch.train.keys import TaskKind, config_with, expected, known_keys, task_kind
from largebatch.train.parse import flat

MAIN = (
    *("run.dir", "run.nproc", "run.seed", "task.name", "model.name", "data.name", "data.root"),
    *("batch.size", "batch.micro", "batch.reference", "batch.plan", "norm.kind"),
    *("norm.ghost_size", "optim.name", "optim.lr", "optim.scaling", "optim.weight_decay"),
    *("schedule.length", "schedule.warmup", "schedule.curve", "precision.compute"),
    *("evaluate.every", "probes", "distributed.engine", "checkpoint.every"),
)
"""The keys that a first run is about; `train --help` shows these."""


@dataclass(frozen=True)
class Key:
    """One key of a config.

    Attributes:
        name: ``section.key``, or the key alone if it is in no section.
        default: the default value in YAML's types.
        allowed: the type in words, with every choice named.
        text: the text below its field, in one line.
        is_free: whether it may differ between a run and its continuation.
        is_of_rank: whether it may differ between the ranks of a run.
    """

    name: str
    default: Any
    allowed: str
    text: str
    is_free: bool
    is_of_rank: bool

    @property
    def section(self) -> str:
        """The section of the key; its own name if it is in no section."""
        return self.name.partition(".")[0]


def key_table(task: TaskKind | None = None) -> list[Key]:
    """Return every key, in the order of the sections.

    Args:
        task: dataclass of the section ``task``; None: that of the default task.
    """
    kind = config_with(task or task_kind({}, False))
    hints, defaults = known_keys(task), flat(kind())
    texts = dict(_texts(kind))
    return [
        Key(
            name,
            defaults[name],
            expected(hint),
            texts.get(name, ""),
            _is_marked(name, FREE_KEYS),
            _is_marked(name, RANK_KEYS),
        )
        for name, hint in hints.items()
    ]


def section_texts(task: TaskKind | None = None) -> dict[str, str]:
    """Return a line on each section of a config: the first line of its class's docstring."""
    kinds = get_type_hints(config_with(task or task_kind({}, False)))
    return {
        section: (inspect.getdoc(kind) or "").partition("\n")[0]
        for section, kind in kinds.items()
        if is_dataclass(kind)
    }


def _is_marked(name: str, marked: tuple[str, ...]) -> bool:
    return name in marked or name.partition(".")[0] in marked


def _texts(kind: type[Config]) -> Iterator[tuple[str, str]]:
    for section, hint in get_type_hints(kind).items():
        if is_dataclass(hint):
            below = _below_fields(hint)
            for each in fields(hint):
                yield f"{section}.{each.name}", below.get(each.name, "")
        else:
            yield section, _below_fields(Config).get(section, "")


def _below_fields(kind: Any) -> dict[str, str]:
    """Return the text below each field of a dataclass, those of its bases included."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError):  # made by make_dataclass, or built in: it has no text
            continue
        lines = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for field, text in pairwise(lines):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                said = ast.literal_eval(text.value)
                found[ast.unparse(field.target)] = " ".join(said.split())
    return found
