"""The code blocks of a page, as the tests run them.

`python` blocks run with the default tests, `sh` blocks with the slow ones, page by page from top to
bottom. A comment before a block says what is special about it:

    <!-- slow -->                it runs with the slow tests alone
    <!-- not run: REASON -->     it is only checked: that it compiles, that its keys exist

"Save this as `NAME`:" before a block makes it a file of that name in the page's folder. A `text`
block is what the block before it prints, numbers aside; `...` stands for lines left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MARK = re.compile(r"<!-- (slow|not run: .+?) -->\s*$")
NAMED = re.compile(r"[Ss]ave this as `([\w./-]+)`:\s*$")
NUMBER = re.compile(r"\d[\d.,:]*")


@dataclass(frozen=True)
class Block:
    """One code block: its language, its text, and what the page says of it.

    Attributes:
        line: where it begins in the page.
        is_slow, is_run: by the comment before it.
        name: the file it is saved as; "" for none.
    """

    language: str
    text: str
    line: int
    is_slow: bool
    is_run: bool
    name: str


def blocks_of(markdown: str) -> Iterator[Block]:
    """Yield the code blocks of a page."""
    end = 0
    for found in FENCE.finditer(markdown):
        before = markdown[end : found.start()].rstrip()
        end = found.end()
        mark = MARK.search(before)
        said = mark[1] if mark else ""
        named = NAMED.search(before)
        yield Block(
            found[1],
            found[2],
            markdown.count("\n", 0, found.start()) + 1,
            said == "slow",
            not said.startswith("not run"),
            named[1] if named else "",
        )


def shape(line: str) -> str:
    """Return a line of output without its numbers and the width of its gaps."""
    return " ".join(NUMBER.sub("#", line).split())


def unprinted(expected: str, printed: str) -> list[str]:
    """Return the lines of a ``text`` block that were not printed in this order."""
    rest = iter([shape(line) for line in printed.splitlines()])
    wanted = (line for line in expected.splitlines() if line.strip() not in ("", "..."))
    return [line for line in wanted if shape(line) not in rest]
