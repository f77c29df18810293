"""Output that cannot be written: dropped where it is progress, a failure where it is the result."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from largebatch._errors import RunFailure, UserError, one_line

PROGRAM = """
import os, sys
from largebatch._output import forgive_lost_output
forgive_lost_output()
for number in range(3000):
    print("progress", number, "\\u00e9\\udcff", flush=number % 2 == 0)
    print("trouble", number, file=sys.stderr)
file = open(os.devnull)
assert file.fileno() > 2, file.fileno()
sys.exit(7)
"""


def run(redirection: str, program: str = PROGRAM, **environment: str) -> int:
    """Return the exit code of the program with its output redirected by a shell."""
    command = f'"$@" {redirection}'
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}", "bash", sys.executable, "-c", program],
        capture_output=True,
        env={**os.environ, **environment},
        timeout=60,
    )
    return done.returncode


@pytest.mark.parametrize(
    "redirection",
    ["| head -1", "> /dev/full", "> /dev/full 2>&1", ">&-", ">&- 2>&- <&-", "2>&1 | true",
     "2> /dev/full"],
)  # fmt: skip
def test_lost_output_does_not_end_a_program(redirection) -> None:
    assert run(redirection) == 7


def test_an_encoding_does_not_end_a_program() -> None:
    assert run("> /dev/null", PYTHONIOENCODING="ascii") == 7


def test_a_terminal_that_is_gone() -> None:
    master, slave = os.openpty()
    process = subprocess.Popen([sys.executable, "-c", PROGRAM],
                               stdout=slave, stderr=slave)  # fmt: skip
    os.close(slave)
    os.read(master, 1)
    os.close(master)  # from here on writes fail with EIO
    assert process.wait(60) == 7


def test_a_reader_that_is_slow_on_a_pipe_that_does_not_wait() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=writer, stderr=writer)
    os.close(writer)
    assert process.wait(60) == 7
    os.close(reader)


def test_what_is_written_arrives_whole_and_in_order() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, timeout=60)
    expected = "".join(f"progress {n} \u00e9\\udcff\n" for n in range(3000))
    assert done.stdout.decode() == expected
    assert done.stderr.decode() == "".join(f"trouble {n}\n" for n in range(3000))


@pytest.mark.parametrize(
    ("redirection", "codes"), [("> /dev/full", {1}), ("| true", {0, 1}), ("> /dev/null", {0})]
)
def test_a_verb_whose_output_is_its_result_says_that_it_is_lost(redirection, codes) -> None:
    command = [sys.executable, "-m", "largebatch", "recipes"]
    done = subprocess.run(
        ["bash", "-c", f'set -o pipefail; "$@" {redirection}', "bash", *command],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode in codes, done.stderr
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
    if done.returncode == 1:
        assert done.stderr.startswith("largebatch: standard output: ")
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("kind", [UserError, RunFailure])
def test_what_went_wrong_is_one_line_that_does_not_steer_a_terminal(kind) -> None:
    said = str(kind("a\n\tb \x1b]0;title\x07 \x9b2J \u202e \udcff \u00e9\u4e2d \U0001f600"))
    assert said.startswith("a b \\x1b]0;title\\x07 \\x9b2J \\u202e \\udcff")
    assert said.endswith("\u00e9\u4e2d \U0001f600") and said.isprintable()
    assert one_line(said) == said
