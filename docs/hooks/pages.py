"""MkDocs hook: the pages that are made from the code come to those that are written by hand.

Nothing of them is kept in the repository, so none can be out of date.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from cards import CARDS, card  # noqa: E402
from failures import failures_table  # noqa: E402
from house import house_svg  # noqa: E402
from lab import lab_tables  # noqa: E402
from reference import (  # noqa: E402
    API,
    api_index,
    api_page,
    entries_page,
    keys_page,
    verbs_page,
)

PLACE = re.compile(r"^\{\{ (file|failures|lab)(?:: (\S+))? \}\}$", re.MULTILINE)
"""Stands in a page for a file, by its path from the root of the repository, as a code block; for
the table of injected failures; for the tables of the lectures' experiments."""

LANGUAGES = {".py": "python", ".sh": "bash", ".sbatch": "bash", ".yaml": "yaml"}


def generated() -> dict[str, str]:
    """Return the text of every page that is made, by its path in the site."""
    pages = {"reference/keys.md": keys_page(), "reference/entries.md": entries_page()}
    pages["reference/verbs.md"] = verbs_page()
    pages["reference/api/index.md"] = api_index()
    pages |= {f"reference/api/{room}.md": api_page(room) for room in API}
    pages |= {page: card(source, page) for source, page in CARDS.items()}
    return {**pages, "images/house.svg": house_svg()}


def on_files(files: Any, config: Any) -> Any:
    """Add the pages, before MkDocs looks for what the navigation and the links name."""
    from mkdocs.structure.files import File

    for path, content in generated().items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put what the repository holds in the place of the lines that name it."""
    return with_sources(markdown)


ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):(?=<code>)~?")
"""Sphinx's roles in docstrings, which Markdown shows as they stand."""


def on_page_content(html: str, **_: Any) -> str:
    """Take away what docstrings have for Sphinx: roles, and the second colon before a block."""
    return ROLE.sub("", html).replace("<code>~", "<code>").replace("::</p>", ":</p>")


def with_sources(markdown: str) -> str:
    """Return a page with the text of the files it names."""
    return PLACE.sub(lambda found: _content(found[1], found[2]), markdown)


def _content(kind: str, path: str) -> str:
    if kind == "failures":
        return failures_table()
    if kind == "lab":
        return lab_tables()
    text = (ROOT / path).read_text(encoding="utf-8").rstrip()
    return f"```{LANGUAGES[Path(path).suffix]}\n{text}\n```"
