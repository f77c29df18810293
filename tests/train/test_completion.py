"""The completion script as a shell runs it."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from largebatch.cli import VERBS, main
from largebatch.train.completion import completion


@pytest.fixture(scope="module")
def script() -> str:
    return completion("bash", {**{verb: [] for verb in VERBS}, "eval": ["--json"]})


def complete(script: str, *words: str) -> list[str]:
    """Return what bash offers for the last of the words, divided as readline divides them."""
    listed = " ".join(f"'{word}'" for word in words)
    program = (
        f"{script}\nCOMP_WORDS=(largebatch {listed}); COMP_CWORD={len(words)}\n"
        "_largebatch\nprintf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return [word.strip() for word in done.stdout.splitlines() if word]


def test_bash_completes(script: str) -> None:
    assert complete(script, "tr") == ["train"]
    assert complete(script, "train", "--optim.l") == ["--optim.lr=", "--optim.lr_inside_momentum=",
                                                      "--optim.lr_correction="]  # fmt: skip
    assert complete(script, "train", "--optim.name", "=", "la") == ["lamb", "lars"]
    assert complete(script, "train", "--optim.nesterov", "=") == ["true", "false"]
    assert complete(script, "train", "--schedule.regime", "=", "s") == ["steps"]
    assert "hoffer-f1-mnist-small" in complete(script, "train", "--recipe", "hoffer")
    assert complete(script, "eval", "--j") == ["--json"]
    assert complete(script, "init", "--batch.s") == ["--batch.size="]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
def test_zsh_completes(script: str) -> None:
    text = completion("zsh", {"train": []}).replace("complete -o", ": complete -o")
    program = (
        f"autoload -U compinit; compinit -u; {text}\nCOMP_WORDS=(largebatch train --optim.name=la);"
        ' setopt ksharrays; COMP_CWORD=2; _largebatch; print -rl -- "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["zsh", "-fc", program], capture_output=True, text=True)
    found = {word.strip() for word in done.stdout.split()}  # zsh keeps those that match
    assert {"--optim.name=lamb", "--optim.name=lars"} <= found, done.stderr
    assert all(word.startswith("--optim.name=") for word in found)


def test_the_command_knows_the_options_of_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    text = capsys.readouterr().out
    assert complete(text, "eval", "--a") == ["--allow-imports"]
    assert complete(text, "plan", "--no") == ["--nodes"]
    assert complete(text, "train", "--rec") == ["--recipe"]
    assert main(["completion", "fish"]) == 2
    assert "choose from bash, zsh" in capsys.readouterr().err
