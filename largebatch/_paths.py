"""Paths as people write them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from largebatch._errors import UserError


class UserPath(str):
    """The path of a file or folder that a person wrote: ``~`` is their home, ``~NAME`` NAME's.

    Every config key and option that holds a path has this type, and nothing else expands ``~``. A
    shell leaves the ``~`` of ``--run.dir=~/x`` alone, and so does a YAML file.

    Raises:
        UserError: the path is empty, names the home of an unknown user, or is a word for none.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> UserPath:
        if not text or "\0" in text:
            raise UserError(f"path {text!r}: name a file or folder, . for the one you are in")
        if text.lower() == "none":
            raise UserError(f"path {text!r}: write null for none, ./{text} for what has that name")
        path = os.path.expanduser(text)
        if path.startswith("~"):
            raise UserError(f"path {text!r}: there is no such home; ./{text} is what has that name")
        return super().__new__(cls, path)


def user_path(text: str) -> Path:
    """Return the path in a command-line option, for ``argparse``."""
    try:
        return Path(UserPath(text))
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
