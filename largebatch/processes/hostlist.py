"""Expand Slurm's host lists: ``rack[1-2]node[01-04],login`` is nine names.

The grammar is that of ``scontrol show hostnames``. A name may have any number of brackets with text
between and after them. A bracket holds numbers and ranges. A number keeps its leading zeros. With
several brackets the last one changes fastest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product

from largebatch._errors import UserError

# Commas part names, those within brackets excepted.
_NAME = re.compile(r"(?:[^\[\],\s]|\[[^\[\]]*\])+")
_PART = re.compile(r"\[([^\[\]]*)\]|([^\[\]]+)")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
MOST = 1_000_000  # names of one list: a range that was mistyped does not fill the memory


def expand(hosts: str) -> list[str]:
    """Return the names of a list, in its order.

    Raises:
        UserError: the text is not a host list.
    """
    return list(_names(hosts))


def _names(hosts: str) -> Iterator[str]:
    end, count = -1, 0
    for match in _NAME.finditer(hosts):
        if hosts[end + 1 : match.start()] or (end >= 0 and hosts[end] != ","):
            raise _no_list(hosts)
        end = match.end()
        for parts in product(*(_choices(part, hosts) for part in _PART.finditer(match[0]))):
            count += 1
            if count > MOST:
                raise _no_list(hosts)
            yield "".join(parts)
    if count == 0 or end != len(hosts):
        raise _no_list(hosts)


def _choices(part: re.Match[str], hosts: str) -> list[str]:
    """Return what may stand in place of one part of a name."""
    if part[2] is not None:
        return [part[2]]
    found: list[str] = []
    for item in part[1].split(","):
        match = _RANGE.fullmatch(item)
        if match is None:
            raise _no_list(hosts)
        first, last = match[1], match[2] or match[1]
        if not 0 <= int(last) - int(first) < MOST:
            raise _no_list(hosts)
        found += [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return found


def _no_list(hosts: str) -> UserError:
    return UserError(f"{hosts[:200]!r} is no list of hosts as Slurm writes them: set MASTER_ADDR")
