"""YAML and JSON files that people write: the one place where they are read.

Files are read as data only, without any Python tag. Two things are refused, by name and line. One
is a key given twice, of which a plain reader drops one. The other is a text that grows beyond a
mebibyte once its aliases are written out (ten lines of ten aliases each are ten thousand million
values).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from largebatch._errors import UserError

MOST = 2**20  # bytes of a file, and characters of what its aliases stand for
MOST_LEVELS = 100  # of nesting

# YAML 1.1 reads 1e-3 as text and 2026-01-01 as a date; people mean a number and a text.
_FLOAT = re.compile(
    r"(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_TAG = "tag:yaml.org,2002:"
_RESOLVERS = {
    first: [
        (tag, form)
        for tag, form in resolvers
        if tag.removeprefix(_TAG) in ("bool", "int", "null", "merge")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _first in "-+0123456789.":
    _RESOLVERS[_first] = [*_RESOLVERS[_first], (f"{_TAG}float", _FLOAT)]


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _RESOLVERS
    name = ""

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        # Refused here too: the scanner reads a thousand characters ahead of the first bracket,
        # and every token it reads costs as much as there are brackets open.
        if self.flow_level > MOST_LEVELS:
            raise UserError(
                f"{self.name}: line {self.line + 1}: nested deeper than {MOST_LEVELS} levels"
            )
        super().fetch_flow_collection_start(TokenClass)

    def construct_document(self, node: yaml.Node) -> Any:
        _Expansion(self).size(node, "", 0)
        return super().construct_document(node)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _RESOLVERS

    def ignore_aliases(self, data: Any) -> bool:
        return True


def parse_yaml(text: str, name: str) -> Any:
    """Return the data in a YAML text.

    Args:
        text: one document, or none.
        name: name of the text in messages, such as ``config='a.yaml'``.

    Raises:
        UserError: the text is not YAML, gives a key twice or is too large; the message names the
            line.
    """
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        loader.name = name
        return loader.get_single_data()
    except UserError:
        raise
    except RecursionError:
        raise UserError(f"{name}: nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable"
        raise UserError(f"{name}: malformed YAML{where}: {problem}") from None
    finally:
        if loader is not None:
            loader.dispose()


def dump_yaml(tree: Any, in_one_line: bool = False) -> str:
    """Return YAML that :func:`parse_yaml` reads back as ``tree``."""
    flow, width = (True, float("inf")) if in_one_line else (False, 80)
    return yaml.dump(
        tree,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=flow,
        width=width,
    )


def read_yaml(path: str | Path, name: str) -> Any:
    """Return the data in a YAML file: :func:`parse_yaml` of :func:`read_text`."""
    return parse_yaml(read_text(path, name), name)


def read_json(path: str | Path, name: str) -> Any:
    """Return the data in a JSON file.

    Raises:
        UserError: the text is not JSON (NaN and Infinity are not allowed) or gives a key twice; or
            as for :func:`read_text`.
    """
    text = read_text(path, name)

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise UserError(f"{name}: {key} is given twice in one object; keep one")
            found[key] = value
        return found

    def constant(word: str) -> Any:
        raise UserError(f"{name}: malformed JSON: {word} is no number")

    try:
        return json.loads(text, object_pairs_hook=mapping, parse_constant=constant)
    except UserError:
        raise
    except RecursionError:
        raise UserError(f"{name}: nested too deeply") from None
    except ValueError as error:
        raise UserError(f"{name}: malformed JSON: {error}") from None


def read_text(path: str | Path, name: str) -> str:
    """Read a file that a person wrote.

    Raises:
        UserError: the file cannot be read, is not UTF-8, or is larger than ``MOST``.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MOST + 1)
        if len(content) > MOST:
            raise UserError(f"{name}: larger than {MOST:,} bytes")
        return content.decode("utf-8")
    except OSError as error:
        raise UserError(f"{name}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not UTF-8 at byte {error.start}") from None


class _Expansion:
    """Walks a document before anything is made of it: each node once, aliases by their size."""

    def __init__(self, loader: _Loader) -> None:
        self._loader = loader
        self._sizes: dict[yaml.Node, int | None] = {}

    def size(self, node: yaml.Node, path: str, level: int) -> int:
        """Return the characters of a node with every alias in it written out."""
        if node in self._sizes:
            known = self._sizes[node]
            if known is None:
                raise self._refusal(node, f"{path} is an alias of what holds it")
            return known
        if level > MOST_LEVELS:
            raise self._refusal(node, f"nested deeper than {MOST_LEVELS} levels")
        self._sizes[node] = None
        size = 1
        if isinstance(node, yaml.ScalarNode):
            size += len(node.value)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                size += self.size(item, f"{path}[{index}]", level + 1)
        elif isinstance(node, yaml.MappingNode):
            lines: dict[Any, int] = {}
            for key, value in node.value:
                name = f"{path}.{self._key(key, lines, path)}" if path else self._key(key, lines)
                size += self.size(key, path, level + 1) + self.size(value, name, level + 1)
        if size > MOST:
            raise self._refusal(node, f"{path or 'the file'} is larger than {MOST:,} characters")
        self._sizes[node] = size
        return size

    def _key(self, node: yaml.Node, lines: dict[Any, int], path: str = "") -> str:
        """Return a key's name, which must be new in its mapping."""
        if not isinstance(node, yaml.ScalarNode):
            return "?"
        # Compared as made: 1 and 0x1 are one key.
        key = "<<" if node.tag == f"{_TAG}merge" else self._loader.construct_object(node)
        line = node.start_mark.line + 1
        if key in lines:
            name = f"{path}.{node.value}" if path else node.value
            raise self._refusal(node, f"{name} is given twice (first at line {lines[key]})")
        lines[key] = line
        return str(node.value)

    def _refusal(self, node: yaml.Node, problem: str) -> UserError:
        return UserError(f"{self._loader.name}: line {node.start_mark.line + 1}: {problem}")
