"""The site: what is made from the code is complete, the pictures are up to date, it builds."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import largebatch.train
from largebatch.cli import VERBS
from largebatch.train.explain import KNOWN
from largebatch.train.keys import known_keys

ROOT = Path(__file__).parents[2]
HOOKS = ROOT / "docs" / "hooks"


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    sys.path.insert(0, str(HOOKS))
    try:
        import pages
    finally:
        sys.path.remove(str(HOOKS))
    return pages


@pytest.fixture(scope="module")
def made(hooks: ModuleType) -> dict[str, str]:
    found: dict[str, str] = hooks.generated()
    return found


def test_every_key_is_in_the_reference(made: dict[str, str]) -> None:
    page = made["reference/keys.md"]
    for key in known_keys():
        row = re.search(rf"^\| `{re.escape(key)}` \| (.*) \| (.*) \| (.*) \|$", page, re.MULTILINE)
        assert row is not None, key
        assert len(row[3].split()) >= 3, key
    assert "| `batch.size` | `256` | a whole number |" in page


def test_every_entry_is_in_the_reference(made: dict[str, str]) -> None:
    for registry in KNOWN:
        for entry in registry:
            assert f"| `{entry.name}` | {entry.summary}" in made["reference/entries.md"], entry.name


def test_every_verb_is_in_the_reference(made: dict[str, str]) -> None:
    for verb in VERBS:
        assert f"\n## {verb}\n" in made["reference/verbs.md"], verb
        assert f"$ largebatch {verb} --help\nusage" in made["reference/verbs.md"], verb


def test_public_names_are_in_the_reference(made: dict[str, str]) -> None:
    assert "::: largebatch.optim.lars.LARS" in made["reference/api/optim.md"]
    assert "::: largebatch.train.session.run" in made["reference/api/train.md"]
    assert largebatch.train.__all__ == ["Outcome", "run"]
    listed = set(re.findall(r"\((\w+)\.md\)", made["reference/api/index.md"]))
    assert {f"reference/api/{room}.md" for room in listed} <= set(made)


def test_cards_link_within_the_site(made: dict[str, str]) -> None:
    assert "(records.md)" in made["contributing.md"]
    assert ".cpp)" not in made["methods/norms.md"]


def test_the_house_has_every_room(made: dict[str, str]) -> None:
    for room in ("nn", "optim", "train", "study", "cli"):
        assert f">{room}</text>" in made["images/house.svg"], room


def test_the_picture_of_the_gap_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("gap", HOOKS / "gap.py")
    assert spec is not None
    assert spec.loader is not None
    gap = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gap)
    assert gap.PICTURE.read_text(encoding="utf-8") == gap.gap_svg(), "python docs/hooks/gap.py"


def test_the_tables_of_experiments_come_from_their_record(
    hooks: ModuleType, tmp_path: Path
) -> None:
    from largebatch.lab.everything import summary_of
    from largebatch.record import BenchmarkRecord, write_record

    check = {"what": "|w|", "claimed": "1", "measured": "2", "holds": False, "exact": True}
    words = {"lecture": "A lecture", "claim": "it grows", "source": "a paper", "seeds": 3}
    details = {**words, "experiment": "a*", "minutes": 0.5, "verdict": "no", "checks": [check]}
    record = BenchmarkRecord("lab a*", "", [], details=details)
    write_record(tmp_path / "lab.json", summary_of([record]))
    tables = hooks.lab_tables(tmp_path / "lab.json")
    assert "| [a*](#lab-a-) | \\|w\\| | 1 | 2 | 0 of 1 | 3 | 0.5 | no |" in tables
    assert "## A lecture\n\n### a* { #lab-a- }\n\n> it grows" in tables
    assert "| \\|w\\| | 1 | 2 | **no** |" in tables
    assert "{{ lab }}" in (ROOT / "docs" / "lab.md").read_text(encoding="utf-8")
    assert "largebatch lab --all" in hooks.lab_tables(tmp_path / "absent.json")


@pytest.mark.slow
def test_it_builds_without_a_warning(tmp_path: Path) -> None:
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed: pip install -e '.[docs]'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "optim.lr" in (tmp_path / "reference" / "keys" / "index.html").read_text("utf-8")
