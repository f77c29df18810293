"""`largebatch init`: the config it writes is the config that was asked for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from largebatch._documents import parse_yaml
from largebatch.cli import main
from largebatch.train.keys import known_keys
from largebatch.train.parse import flat, parse, read_config
from largebatch.train.recipe import recipe_names
from largebatch.train.template import commented


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_read_back(name: str, tmp_path: Path) -> None:
    config = parse([f"--recipe={name}", "--data.root=/data"])
    (tmp_path / "c.yaml").write_text(commented(config), encoding="utf-8")
    assert read_config(tmp_path / "c.yaml") == config


def test_every_key_is_there_and_may_be_switched_on(tmp_path: Path) -> None:
    text = commented(parse(["--optim.name=lars"]))
    (tmp_path / "c.yaml").write_text(re.sub(r"^#(?=\s*\w)(?! )|^#(?=  \w)", "", text, flags=re.M))
    tree = parse_yaml((tmp_path / "c.yaml").read_text(), "c.yaml")
    named = {
        f"{section}.{key}" if isinstance(keys, dict) else section
        for section, keys in tree.items()
        for key in (keys if isinstance(keys, dict) else [""])
    }
    assert named == set(known_keys())
    assert flat(read_config(tmp_path / "c.yaml")) == flat(parse(["--optim.name=lars"]))
    assert max(map(len, text.splitlines())) <= 110


def test_the_command_writes_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "classification", "--data.name=mnist", "-o", "c.yaml"]) == 0
    printed = capsys.readouterr().out
    assert "largebatch train --config c.yaml" in printed
    assert read_config(tmp_path / "c.yaml").data.name == "mnist"
    assert main(["init", "-o", "r.yaml", "--recipe", "hoffer-f1-mnist-ghost"]) == 0
    assert read_config(tmp_path / "r.yaml").norm.ghost_size == 128
    assert main(["init", "-o", "c.yaml"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["init", "clasification", "-o", "d.yaml"]) == 2
    assert "did you mean 'classification'" in capsys.readouterr().err
    assert main(["init", "--norm.kind=ghost", "-o", "d.yaml"]) == 2
    assert "norm.ghost_size" in capsys.readouterr().err
    assert main(["init", "--optim.lrr=1", "-o", "d.yaml"]) == 2
    assert "optim.lr" in capsys.readouterr().err
    assert not (tmp_path / "d.yaml").exists()
