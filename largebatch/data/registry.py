"""The registry of data sets, from which ``data.name`` chooses.

A factory in the registry is called with the ``data`` section, the split and ``model.num_classes``.
A user's factory is called with the split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from largebatch._registry import Facts, Registry


@dataclass(frozen=True)
class DataFacts(Facts):
    """Facts about a data set that the rest of the package needs.

    Attributes:
        image_files: its samples are image files, which any pipeline may decode.
        text: its samples are windows of text, so the config keys for text apply.
        library: the text is Python's own standard library, so no ``data.root`` is needed.
    """

    image_files: bool = False
    text: bool = False
    library: bool = False

    def words(self) -> Iterator[str]:
        """Yield the facts, one short line each."""
        if self.image_files:
            yield "samples are image files: any data.pipeline decodes them"
        if self.text:
            yield "samples are windows of text: data.tokenizer, context, held_out, streams"


datasets: Registry[Callable[..., Any], DataFacts] = Registry(
    "data.name", lambda _: DataFacts(), importable=True
)
