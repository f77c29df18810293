"""Every code block of README and documentation: checked at once, run by the slow tests.

How a page marks its blocks: docs/hooks/blocks.py.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from largebatch._documents import parse_yaml
from largebatch.cli import VERBS, main
from largebatch.study.command import study_parser
from largebatch.study.options import read_options
from largebatch.study.study import studies
from largebatch.train.keys import check_keys, known_keys, task_kind
from largebatch.train.parse import parse

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = ["README.md", *sorted(p.relative_to(ROOT).as_posix() for p in DOCS.rglob("*.md"))]


def hook(name: str) -> ModuleType:
    """Import a file of docs/hooks."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / "hooks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


blocks, pages = hook("blocks"), hook("pages")


def blocks_in(page: str) -> list[Any]:
    return list(blocks.blocks_of(pages.with_sources((ROOT / page).read_text(encoding="utf-8"))))


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words behind ``largebatch`` in each command of a shell block."""
    for line in text.replace("\\\n", " ").splitlines():
        for command in re.split(r"&&|[|;&]", line.partition(" #")[0]):
            words = shlex.split(command) if command.count('"') % 2 == 0 else []
            if "-m" in words and words[words.index("-m") + 1 :][:1] == ["largebatch"]:
                words = words[words.index("-m") + 1 :]
            if words[:1] == ["largebatch"]:
                yield words[1:]


@functools.cache
def help_of(verb: str) -> str:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        assert main([verb, "--help"]) == 0
    return text.getvalue()


def check_command(words: list[str]) -> None:
    verb, *options = words
    if verb.startswith("-"):
        return
    assert verb in VERBS, words
    if verb == "train" and not any(each.startswith(("--help", "-h")) for each in options):
        parse([each for each in options if each != "--print_config"])
    elif verb == "study" and options[0] in studies:
        _, own = study_parser(options[0]).parse_known_args(options[1:])
        parse(read_options(studies.entry(options[0]).factory, options[0], own).get("base", []))
    elif verb != "train":
        named = [each.partition("=")[0] for each in options if each.startswith("--")]
        assert [each for each in named if each not in help_of(verb)] == [], words


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save(block: Any) -> None:
    if block.name:
        Path(block.name).write_text(block.text, encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_blocks_are_well_formed(page: str, folder: Path) -> None:
    text = pages.with_sources((ROOT / page).read_text(encoding="utf-8"))
    assert "{{ " not in text, "the name of a file to put there is not understood"
    assert text.count("\n```") == 2 * len(blocks_in(page)), "a block without language or end"
    for block in blocks_in(page):
        save(block)
        if block.language == "python":
            compile(block.text, f"{page}:{block.line}", "exec")
        elif block.language == "sh":
            for words in commands(block.text):
                check_command(words)
        elif block.language == "yaml" and "apiVersion" not in block.text:
            tree = parse_yaml(block.text, f"{page}:{block.line}")
            task = task_kind(tree.get("task", {}), imports=False)
            check_keys(tree, page, known_keys(task))


def run(block: Any, page: str) -> str:
    """Run a block in a process of its own and return what it printed."""
    script = Path(f"block{block.line}").with_suffix({"sh": ".sh", "python": ".py"}[block.language])
    script.write_text(block.text, encoding="utf-8")
    command = ["bash", "-euo", "pipefail"] if block.language == "sh" else [sys.executable]
    clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run(
        [*command, str(script)],
        env={
            **clean,
            "PATH": f"{Path('bin').absolute()}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, f"{page}:{block.line}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


QUICK = [
    (page, number)
    for page in PAGES
    for number, block in enumerate(blocks_in(page))
    if block.language == "python" and block.is_run and not block.is_slow and not block.name
]


@pytest.mark.parametrize(("page", "number"), QUICK, ids=lambda each: str(each))
def test_quick_python_runs(page: str, number: int, folder: Path) -> None:
    run(blocks_in(page)[number], page)


@pytest.fixture
def prepared(folder: Path) -> Path:
    """A folder with what pages take for granted: the commands, and MNIST's files under DATA."""
    (folder / "bin").mkdir()
    calls = {"largebatch": "-m largebatch ", "torchrun": "-m torch.distributed.run ", "python": ""}
    for name, call in calls.items():
        program = folder / "bin" / name
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {call}"$@"\n')
        program.chmod(0o755)
    raw = folder / "DATA" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    draw = np.random.default_rng(0)
    patterns = draw.integers(0, 200, (10, 28, 28), dtype=np.uint8)
    for split, count in (("train", 8192), ("t10k", 512)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = patterns[labels] + draw.integers(0, 55, (count, 28, 28), dtype=np.uint8)
        for kind, head, values in (
            ("images-idx3-ubyte", [2051, count, 28, 28], images),
            ("labels-idx1-ubyte", [2049, count], labels),
        ):
            content = np.array(head, ">i4").tobytes() + values.tobytes()
            (raw / f"{split}-{kind}").write_bytes(content)
            (folder / "DATA" / f"{split}-{kind}").write_bytes(content)
    return folder


RUN = [page for page in PAGES if any(b.language == "sh" and b.is_run for b in blocks_in(page))]
LONG = {
    f"docs/tutorials/{name}.md"
    for name in ("contrastive", "critical_batch", "language_lamb", "lost_host", "own_loop")
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.long if page in LONG else ()) for page in RUN]
)
def test_a_page_runs_from_top_to_bottom(page: str, prepared: Path) -> None:
    printed = ""
    for block in blocks_in(page):
        save(block)
        if block.language == "text":
            assert blocks.unprinted(block.text, printed) == [], f"{page}:{block.line}\n{printed}"
        elif block.language in ("sh", "python") and block.is_run and not block.name:
            printed = run(block, page)


HOW_TO = {"apex": "", "timm": "timm", "deepspeed": "deepspeed", "lightning": "lightning"}
HOW_TO["accelerate"] = "accelerate"


@pytest.mark.slow
@pytest.mark.parametrize("name", HOW_TO)
def test_a_migration_runs(name: str, folder: Path) -> None:
    if HOW_TO[name] and importlib.util.find_spec(HOW_TO[name]) is None:
        pytest.skip(f"{HOW_TO[name]} is not installed")
    text = (DOCS / "howto" / f"from_{name}.py").read_text(encoding="utf-8")
    assert "loss" in run(blocks.Block("python", text, 0, True, True, ""), name)


def test_the_readme_fits_on_a_few_screens() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def test_links_of_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), target


def test_every_migration_has_a_page_and_a_script() -> None:
    found = {path.stem.removeprefix("from_") for path in (DOCS / "howto").glob("*.py")}
    assert found == set(HOW_TO) == {p.stem for p in (DOCS / "howto").glob("*.md")} - {"index"}


def test_output_that_is_not_printed_is_found() -> None:
    printed = "a 1\nb   2.5 s\nc\n"
    assert blocks.unprinted("a 7\n...\nc\n", printed) == []
    assert blocks.unprinted("b 3 s\na 1\n", printed) == ["a 1"]
    assert blocks.unprinted("d\n", printed) == ["d"]
