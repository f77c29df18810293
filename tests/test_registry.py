"""Names of code: ``package.module:callable``, and what may go wrong with one."""

from __future__ import annotations

import sys

import pytest

from largebatch.cli import main

FILES = {
    "bad_syntax": "def (\n",
    "bad_name": "x = 1\nundefined\n",
    "bad_import": "import no_such_package\n",
    "bad_exit": "import sys\nsys.exit(3)\n",
    "bad_argparse": "import argparse\nargparse.ArgumentParser().parse_args(['--x'])\n",
    "bad_key": "{}['x']\n",
    "fine": "value = 3\nclass Thing:\n    pass\n",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    yield tmp_path
    sys.path[:] = path
    for name in FILES:
        sys.modules.pop(name, None)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["train", *arguments]) == 2
    line = capsys.readouterr().err.rstrip("\n").splitlines()[-1]
    assert line.startswith("largebatch: ")
    return line


@pytest.mark.parametrize("key", ["model.name", "data.name", "optim.name"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bad_syntax:f", ["SyntaxError", "bad_syntax.py", "line 1"]),
        ("bad_name:f", ["NameError", "bad_name.py:2"]),
        ("bad_import:f", ["no_such_package", "bad_import.py:1"]),
        ("bad_exit:f", ["SystemExit: 3", "bad_exit.py:2"]),
        ("bad_argparse:f", ["SystemExit", "bad_argparse.py:2"]),
        ("bad_key:f", ["KeyError", "bad_key.py:1"]),
        ("fine:value", ["fine.py", "no callable 'value'"]),
        ("fine:absent", ["fine.py", "no callable 'absent'"]),
        ("fine:", ["fine.py"]),
        ("fine:Thing", ["class"]),
        ("fine.inner:f", ["no module 'fine.inner'", "this folder"]),
        ("no_such_module:f", ["no module 'no_such_module'", "this folder"]),
    ],
)
def test_code_that_cannot_be_had(folder, capsys, key, name, words):
    line = refused(capsys, f"--{key}={name}")
    assert key in line and name in line and all(word in line for word in words), line


@pytest.mark.parametrize("key", ["model.name", "data.name", "optim.name", "task.name"])
@pytest.mark.parametrize(
    "name", ["shutil:rmtree", "os:remove", "os:removedirs", "os.path:exists", "builtins:print",
             "pathlib:Path", "sys:exit", "subprocess:run", "collections:OrderedDict"]
)  # fmt: skip
def test_what_is_never_a_model_or_data_set_is_not_called(folder, capsys, key, name):
    for split in ("train", "val"):
        (folder / split).mkdir()
    assert "Python's own" in refused(capsys, f"--{key}={name}")
    assert (folder / "train").is_dir() and (folder / "val").is_dir()


def test_a_file_named_as_a_module_of_pythons_own(folder, capsys):
    (folder / "code.py").write_text("def make(split): pass\n")
    assert "code is a module of Python's own" in refused(capsys, "--data.name=code:make")


def test_modules_of_this_folder_come_last(folder, capsys):
    """A file here takes the place of no installed module, not even for a name of the config."""
    (folder / "psutil.py").write_text("raise RuntimeError\n")
    sys.modules.pop("psutil", None)
    assert "no callable 'make'" in refused(capsys, "--data.name=psutil:make")
