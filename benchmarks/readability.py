"""How hard the prose is to read: README, site and public docstrings, now and at an earlier commit.

    python benchmarks/readability.py --before COMMIT [--json FILE]

Needs textstat 0.7.4, which counts syllables without a dictionary to download. Code blocks, tables,
addresses and inline code are left out: a word of code counts
as the one word "code", so that long names make no sentence harder than its structure.
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import textstat

from largebatch.record import BenchmarkRecord, write_record

FORMULA = (
    "words a sentence = words / sentences; grade = Flesch-Kincaid, 0.39 words a sentence + 11.8"
    " syllables a word - 15.59, both by textstat over all prose of the part together"
)
PARTS = {
    "README": ("README.md",),
    "site": ("docs/",),
    "method cards": ("largebatch/",),
    "public docstrings": ("largebatch/",),
}


def git(*words: str) -> str:
    return subprocess.run(["git", *words], check=True, capture_output=True, text=True).stdout


def prose(markdown: str) -> str:
    """Return the sentences of a page."""
    text = re.sub(r"^```.*?^```$|<!--.*?-->", "", markdown, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^(\||#|\{\{).*$", "", text, flags=re.MULTILINE)
    return plain(text)


def plain(text: str) -> str:
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"``?[^`]+``?", "code", text)
    return re.sub(r"[*_>]", "", text)


def docstrings(source: str) -> Iterator[str]:
    """Yield the docstrings of a module and of its public classes and functions."""
    tree = ast.parse(source)
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and not getattr(node, "name", "").startswith("_"):
            text = ast.get_docstring(node) or ""
            text = re.sub(r"^(Args|Raises|Returns|Attributes):$", "", text, flags=re.MULTILINE)
            # An entry of Args is a sentence of its own.
            yield plain(re.sub(r"^ {4}([\w, *`]+): ", r". code ", text, flags=re.MULTILINE)) + ".\n"


def text_of(part: str, commit: str) -> str:
    files = git("ls-tree", "-r", "--name-only", commit, "--", *PARTS[part]).split()
    if part == "public docstrings":
        found = [git("show", f"{commit}:{name}") for name in files if name.endswith(".py")]
        return "\n".join(text for source in found for text in docstrings(source))
    pages = [git("show", f"{commit}:{name}") for name in files if name.endswith(".md")]
    return "\n".join(prose(page) for page in pages)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--before", required=True, help="the commit to compare with")
    parser.add_argument("--json", help="write the record here")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for part in PARTS:
        for name, commit in (("before", options.before), ("now", "HEAD")):
            text = text_of(part, commit)
            if not text.strip():
                continue
            words, sentences = textstat.lexicon_count(text), textstat.sentence_count(text)
            rows.append(
                {
                    "part": part,
                    "at": f"{name} ({git('rev-parse', '--short', commit).strip()})",
                    "words": words,
                    "words a sentence": round(words / sentences, 1),
                    "grade": round(textstat.flesch_kincaid_grade(text), 1),
                }
            )
    record = BenchmarkRecord("readability", FORMULA, rows)
    print(record.table())
    if options.json:
        write_record(options.json, record)


if __name__ == "__main__":
    main()
