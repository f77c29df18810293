"""Marks on config keys: whether a key may differ on resumption or between ranks.

dir: UserPath | None = field(default=None, metadata=FREE | OF_RANK)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import get_type_hints

FREE = {"free": True}
"""It may differ between a run and its continuation: it does not shape the trajectory."""

OF_RANK = {"of_rank": True}
"""It may differ between the ranks of a run: where it lies, what each host affords."""

SETTLED = {"settled": True}
"""Where it is null a run works it out when it begins, and config.yaml says what it found."""


def marked(config: type, mark: Mapping[str, bool]) -> tuple[str, ...]:
    """Return the sections and keys (``section.key``) of a config that carry a mark.

    Args:
        config: the dataclass whose fields are sections, and keys without a section.
        mark: one of the marks in this module.
    """

    def found() -> Iterator[str]:
        kinds = get_type_hints(config)
        for section in fields(config):
            if mark.items() <= section.metadata.items():
                yield section.name
            elif is_dataclass(kinds[section.name]):
                for key in fields(kinds[section.name]):
                    if mark.items() <= key.metadata.items():
                        yield f"{section.name}.{key.name}"

    return tuple(found())
