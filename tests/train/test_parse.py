"""What ``train --help`` says: of every key what it means, of names every one that may be chosen."""

from __future__ import annotations

import contextlib
import io
import re

import pytest

import largebatch.models  # noqa: F401
from largebatch._errors import UserError
from largebatch.data.registry import datasets
from largebatch.engine import engines
from largebatch.nn.registry import norms
from largebatch.optim.registry import optimizers
from largebatch.schedule.curve import curves
from largebatch.train.key_table import MAIN, key_table
from largebatch.train.keys import known_keys
from largebatch.train.parse import parse
from largebatch.train.session import train

CHOICES = {
    "optim.name": optimizers,
    "norm.kind": norms,
    "data.name": datasets,
    "schedule.curve": curves,
    "distributed.engine": engines,
}


@pytest.fixture(scope="module")
def described() -> dict[str, str]:
    """Return the help of each key, its white space joined."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), pytest.raises(SystemExit) as end:
        parse(["--help=all"])
    assert end.value.code == 0
    words = " ".join(text.getvalue().split())
    words = words[words.index("--config CONFIG") :]  # past the usage line
    return {
        found[1]: found[2]
        for found in re.finditer(r"--([a-z_]+\.[a-z_0-9]+)\b(.*?)(?= --[a-z_]+[. ]|$)", words)
    }


@pytest.mark.parametrize("key", [key for key in known_keys() if "." in key])
def test_every_key_says_what_it_means(described: dict[str, str], key: str) -> None:
    said = re.sub(r"\(type: .*|\{.*?\}|[A-Z_]{2,}|\[.*?\]", "", described[key])
    assert len(said.split()) >= 3, described[key]


@pytest.mark.parametrize("key", CHOICES)
def test_every_choice_is_in_its_keys_description(described: dict[str, str], key: str) -> None:
    names = [entry.name for entry in CHOICES[key]]
    absent = [name for name in names if not re.search(rf"\b{name}\b", described[key])]
    assert not absent


def test_short_help_is_short_and_a_section_has_all_its_keys(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train(["--help"]) == 0
    short = capsys.readouterr().out
    assert len(short.splitlines()) < 100
    assert all(f"  --{key}" in short for key in MAIN)
    assert "--optim.dampening" not in short
    assert max(map(len, short.splitlines())) <= 100
    assert train(["--help=optim"]) == 0
    section = capsys.readouterr().out
    assert all(f"  --{key}" in section for key in known_keys() if key.startswith("optim."))
    assert train(["--help=task"]) == 0
    assert "task.name=classification" in capsys.readouterr().out
    with pytest.raises(UserError, match="did you mean 'optim'"):
        train(["--help=optm"])


def test_every_key_has_its_text_in_the_table() -> None:
    table = key_table()
    assert [key.name for key in table] == list(known_keys())
    assert [key.name for key in table if len(key.text.split()) < 3] == []
    assert set(MAIN) <= set(known_keys())
    assert {key.name for key in table if key.is_of_rank} >= {"run.dir", "data.root"}
