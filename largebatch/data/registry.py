"""The data sets a config can name.

A factory of ours is called with the ``data`` section, the split and ``model.num_classes``; a user's
with the split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from largebatch._registry import Facts, Registry


@dataclass(frozen=True)
class DataFacts(Facts):
    """What the rest of the package has to know of a data set.

    Attributes:
        image_files: its samples are image files, which any of the pipelines may decode.
        text: its samples are windows of text, which the keys of text are about.
        library: the text is that of Python's own library, wherever that lies.
    """

    image_files: bool = False
    text: bool = False
    library: bool = False

    def words(self) -> Iterator[str]:
        """Yield the facts, a short line each."""
        if self.image_files:
            yield "samples are image files: any data.pipeline decodes them"
        if self.text:
            yield "samples are windows of text: data.tokenizer, context, held_out, streams"


datasets: Registry[Callable[..., Any], DataFacts] = Registry(
    "data.name", lambda _: DataFacts(), importable=True
)
