"""A path means the same wherever a person writes it."""

from __future__ import annotations

import re
from dataclasses import is_dataclass
from pathlib import Path
from typing import Union, get_args, get_origin

import numpy as np
import pytest
import yaml

from largebatch.cli import main
from largebatch.train.keys import known_keys
from largebatch.train.parse import dump, parse

PATH_KEYS = (
    "run.dir",
    "model.init_from",
    "data.root",
    "data.tokenizer",
    "distributed.deepspeed_config",
    "checkpoint.resume",
)


@pytest.fixture
def home(tmp_path, monkeypatch):
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


def value(config, key):
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("key", PATH_KEYS)
def test_the_home_in_every_key(home, tmp_path, key):
    section, name = key.split(".")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({section: {name: "~/x/y"}}))
    for arguments in ([f"--{key}=~/x/y"], [f"--{key}", "~/x/y"], [f"--config={tmp_path}/c.yaml"]):
        assert value(parse(arguments), key) == str(home / "x" / "y")
    assert value(parse([f"--{key}=~"]), key) == str(home)
    assert value(parse([f"--{key}=./~"]), key) == "./~"
    assert value(parse([f"--{key}=a~b/~"]), key) == "a~b/~"


def test_every_key_that_holds_a_path_is_known_here():
    """A new one whose documentation speaks of a path has to have the type, and stand above."""
    import inspect

    from largebatch._paths import UserPath
    from largebatch.train.config import Config

    def kinds(hint):
        return get_args(hint) if get_origin(hint) is Union or get_args(hint) else (hint,)

    typed = {key for key, hint in known_keys().items() if UserPath in kinds(hint)}
    assert typed == set(PATH_KEYS)
    for section, kind in inspect.get_annotations(Config, eval_str=True).items():
        if not is_dataclass(kind):  # a key by itself
            continue
        text = inspect.getsource(kind)
        for name, words in re.findall(
            r'^    (\w+): .*\n    """((?:.|\n)*?)"""', text, re.MULTILINE
        ):
            if re.search(r"\b([Ff]older of|[Rr]un directory;|path of|A \.\w+ file)", words):
                assert f"{section}.{name}" in typed, f"{section}.{name}: {words}"


def test_the_home_in_options(home, capsys):
    (home / "c.yaml").write_text("optim: {lr: 0.5}\n")
    assert parse(["--config=~/c.yaml"]).optim.lr == 0.5
    assert parse(["--config", "~/c.yaml"]).optim.lr == 0.5
    small = ["--model=digits_cnn", "--image=1x8x8", "--classes=10", "--nodes=2"]
    assert main(["plan", *small, "--json=~/p/plan.json"]) == 0
    assert (home / "p" / "plan.json").is_file()
    capsys.readouterr()
    for arguments in (
        ["plan", *small, "--constants=~/none.json"],
        ["eval", "~/none"],
        ["report", "~/none", "-o", "~/r.html"],
        ["bench", "data", "--root=~/none"],
        ["doctor", "--data=~/none"],
    ):
        main(arguments)
        printed = capsys.readouterr()
        assert str(home / "none") in printed.err + printed.out, arguments
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("key", PATH_KEYS)
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "name a file or folder"),
        ("~nobody-of-that-name/x", "no such home"),
        ("None", "write null for none"),
        ("none", "./none"),
        ("a\0b", "name a file or folder"),
    ],
)
def test_paths_that_are_none(home, capsys, tmp_path, key, text, words):
    line = refused(capsys, "train", f"--{key}={text}")
    assert key in line and words in line, line
    section, name = key.split(".")
    (tmp_path / "c.yaml").write_text(yaml.dump({section: {name: text}}))
    line = refused(capsys, "train", f"--config={tmp_path}/c.yaml")
    assert key in line and line.count("\n") == 1
    assert list(Path.cwd().iterdir()) == []


def test_options_that_are_no_paths(home, capsys):
    for arguments in (
        ["eval", "~nobody-of-that-name/x"],
        ["report", "x", "-o", ""],
        ["plan", "--json=~nobody-of-that-name/x"],
        ["bench", "data", "--root=~nobody-of-that-name/x"],
        ["train", "--config=~nobody-of-that-name/x"],
    ):
        line = refused(capsys, *arguments)
        assert line.count("\n") == 1
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("key", [key for key in PATH_KEYS if key != "checkpoint.resume"])
def test_null_is_none_and_a_folder_of_that_name_has_a_dot(home, tmp_path, key):
    """As for every key that may be none: what a recipe or a file sets can be taken back."""
    section, name = key.split(".")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({section: {name: "x"}}))
    assert value(parse([f"--config={tmp_path}/c.yaml", f"--{key}=null"]), key) is None
    assert value(parse([f"--{key}=./null"]), key) == "./null"
    for text in ("1e-4", "123", "true", "[x]", "a: b", "- x"):  # no YAML: a name
        assert value(parse([f"--{key}={text}"]), key) == text


def test_a_written_config_can_be_read_in_another_folder(home, tmp_path):
    config = parse(["--data.root=../images", "--run.dir=null", "--model.init_from=w.safetensors"])
    written = yaml.safe_load(dump(config))
    assert written["data"]["root"] == str(tmp_path / "images")
    assert written["model"]["init_from"] == str(tmp_path / "here" / "w.safetensors")
    assert written["run"]["dir"] is None


def test_hosts_with_homes_of_their_own_agree(home, monkeypatch, tmp_path):
    """Where a file lies on each host is that host's affair."""
    from largebatch.train.config import RANK_KEYS
    from largebatch.train.continuation import without
    from largebatch.train.parse import flat

    def compared() -> dict[str, object]:
        return without(flat(parse([f"--{key}=~/x" for key in PATH_KEYS])), RANK_KEYS)

    here = compared()
    monkeypatch.setenv("HOME", str(tmp_path / "another"))
    assert compared() == here


def test_several_ranks_get_the_folder_that_was_named(home, monkeypatch):
    """./null and ./~ as the launcher hands them on."""
    from largebatch.train import session

    x = np.zeros((8, 4, 4), np.uint8)
    np.savez(home / "d.npz", x_train=x, y_train=np.arange(8) % 2, x_test=x, y_test=np.arange(8) % 2)
    handed = []

    def launch(nproc, arguments, stop):
        handed.append(parse(arguments[1:]))
        return 0

    monkeypatch.setattr(session, "launch_local_ranks", launch)
    for name in ("null", "~"):
        session.train(["--run.nproc=2", f"--run.dir=./{name}", "--data.name=arrays",
                   "--data.root=~/d.npz", "--model.name=digits_cnn"])  # fmt: skip
        config = handed[-1]
        assert config.run.dir == str(Path.cwd() / name)
        assert config.data.root == str(home / "d.npz")
