"""Recipes: named configs that ship with the package."""

from __future__ import annotations

from pathlib import Path

from largebatch._errors import UserError, nearest

FOLDER = Path(__file__).parent.parent / "recipes"


def recipe_names() -> list[str]:
    """Return the names of the recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def recipe_file(name: str) -> Path:
    """Return the path of a recipe's file.

    Raises:
        UserError: there is no recipe of this name.
    """
    choices = recipe_names()
    if name not in choices:
        raise UserError(
            f"recipe={name!r}: choose from {', '.join(choices)}{nearest(name, choices)}"
        )
    return FOLDER / f"{name}.yaml"


def recipe_summary(name: str) -> str:
    """Return the comment at the top of a recipe, in one line."""
    first = recipe_file(name).read_text(encoding="utf-8").splitlines()[0]
    return first.lstrip("# ")
