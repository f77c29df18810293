"""CONTRIBUTING.md's table, row by row: a thing is added in the files that its row names, and runs.

What is added lies in ``tests/contributed``. Each row has a copy of the package of its own.
"""

from __future__ import annotations

import filecmp
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch.utils.cpp_extension import include_paths, library_paths

ROOT = Path(__file__).parent.parent
CONTRIBUTED = Path(__file__).parent / "contributed"
COMPILED = ROOT / "largebatch" / "_C.abi3.so"


@dataclass
class Row:
    """A line of the table.

    Attributes:
        files: that it names, with the name of what is added in the place of NAME.
        tests: that cover it by its being listed.
    """

    name: str
    files: set[str]
    tests: list[str]


def rows() -> dict[str, Row]:
    """Read the table: what to add, its example, the files to touch, the tests that cover it."""
    found = {}
    for line in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and "`" in cells[1]:
            example, files, tests = (re.findall("`([^`]+)`", cell) for cell in cells[1:])
            name = Path(example[0]).stem
            found[cells[0]] = Row(name, {file.replace("NAME", name) for file in files}, tests)
    return found


ROWS = rows()


class Clone:
    """A copy of what a clone of the repository holds, and what was changed in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for room in ("largebatch", "tests", "csrc"):
            shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("*.so"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        if COMPILED.exists():
            (folder / "largebatch" / COMPILED.name).symlink_to(COMPILED)

    def edit(self, file: str, *changes: tuple[str, str]) -> None:
        """Put a text behind another one that stands in a file once."""
        path = self.folder / file
        text = path.read_text(encoding="utf-8")
        for before, added in changes:
            assert text.count(before) == 1, f"{file}: {before!r}"
            text = text.replace(before, before + added)
        path.write_text(text, encoding="utf-8")

    def add(self, row: Row) -> None:
        """Touch the files of a row: its own from the examples, an import line in ``__init__``."""
        for file in sorted(row.files):
            path = self.folder / file
            own = CONTRIBUTED / (Path(file).name if path.suffix == ".py" else file)
            if path.name == "__init__.py":
                module = f"{path.parent.relative_to(self.folder)}".replace("/", ".")
                text = path.read_text(encoding="utf-8")
                head, listed, rest = text.partition("\n__all__ = [")
                line = f"from {module} import {row.name}  # noqa: F401\n"
                path.write_text(f"{head}{line}{listed}{rest}", encoding="utf-8")
            elif path.exists():
                self.edit(file, *EDITS[file])
            else:
                path.parent.mkdir(exist_ok=True)
                shutil.copy(own, path)

    def touched(self) -> set[str]:
        """Return the files that differ from the repository's, new ones and lost ones among them."""
        files = {
            str(path.relative_to(root))
            for root in (self.folder, ROOT)
            for room in ("largebatch", "tests", "csrc")
            for path in (root / room).rglob("*")
            if path.is_file() and path.suffix not in (".pyc", ".so")
        }
        _, different, lost = filecmp.cmpfiles(ROOT, self.folder, files, shallow=False)
        return {*different, *lost}

    def run(self, *arguments: str, **variables: str) -> str:
        """Run Python in the clone and return what it printed."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "LARGEBATCH"))}
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env={**clean, "PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1", **variables},
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


# Where a row names a file of ours that is no __init__: behind which text stands what is added.
EDITS: dict[str, list[tuple[str, str]]] = {
    "largebatch/distributed/preference.py": [('Wanted = Literal["auto", "flat"', ', "gather"')],
    "largebatch/distributed/all_reduce.py": [
        ('    "torus": Algorithms.start_torus,\n', '    "gather": start_gather,\n'),
        (
            "from largebatch.distributed.cost_model import Choice\n",
            "from largebatch.distributed.gather import start_gather\n",
        ),
    ],
    "csrc/ops.cpp": [
        ('#include "shards/shards.h"\n', '#include "softsign/softsign.h"\n'),
        (
            "STABLE_TORCH_LIBRARY(largebatch, library) {\n",
            '  library.def("softsign(Tensor x) -> Tensor");\n',
        ),
        (
            "STABLE_TORCH_LIBRARY_IMPL(largebatch, CPU, library) {\n",
            '  library.impl("softsign", TORCH_BOX(&largebatch::softsign_cpu));\n',
        ),
    ],
}

# Trains, trains again with a stop on the way and after it, and evaluates by the command.
TRAIN = """
import json, sys
from largebatch.cli import main
from largebatch.processes.lifetime import StopRequest
from largebatch.train import run
from largebatch.train.parse import parse

class OnTheWay(StopRequest):
    asked = 0

    def __bool__(self):
        self.asked += 1
        return self.asked > 15

options = ["--schedule.length=2ep", "--batch.size=128", "--telemetry.every=1st", *sys.argv[1:]]
whole = run(parse(["--run.dir=whole", *options]))
assert whole.finished
again = parse(["--run.dir=again", *options])
stopped = run(again, stop=OnTheWay())
assert not stopped.finished and 0 < stopped.steps < whole.steps, stopped
resumed = run(again)
assert resumed.summary["weights_sha256"] == whole.summary["weights_sha256"]
assert main(["eval", "again"]) == 0
"""


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[Callable[[str], Clone]]:
    """Return a function that adds what a row of the table is about to a copy of the package."""

    def add(what: str) -> Clone:
        made, row = Clone(tmp_path / "clone"), ROWS[what]
        made.add(row)
        assert made.touched() == row.files
        return made

    yield add
    shutil.rmtree(tmp_path / "clone", ignore_errors=True)


def lines(clone: Clone, split: str) -> list[dict[str, float]]:
    text = (clone.folder / "again" / "metrics.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if line["split"] == split]


def test_the_table_has_a_row_for_each_kind() -> None:
    assert list(ROWS) == [
        *("an optimizer", "a norm", "a model", "a task", "a probe", "an evaluation", "a study"),
        *("an all-reduce", "a kernel"),
    ]
    for row in ROWS.values():
        assert row.files and row.tests
        assert all((ROOT / test).exists() for test in row.tests), row.tests
        assert len(row.files) == 2 or row.name in ("gather", "softsign")
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150


@pytest.mark.parametrize(
    ("what", "options"),
    [
        ("an optimizer", ["--optim.name=sign_sgd", "--optim.lr=0.002"]),
        pytest.param("a norm", ["--norm.kind=rms_norm"], marks=pytest.mark.slow),
        pytest.param("a model", ["--model.name=mlp"], marks=pytest.mark.slow),
        pytest.param("a task", ["--task.name=one_hot", "--optim.lr=0.01"], marks=pytest.mark.slow),
        pytest.param(
            "a probe", ["--probes=[{name: gradient_norm, every: 2st}]"], marks=pytest.mark.slow
        ),
        pytest.param(
            "an evaluation", ["--evaluate.also=[{name: confusion}]"], marks=pytest.mark.slow
        ),
    ],
)
def test_it_trains_resumes_and_is_evaluated(
    what: str, options: list[str], clone: Callable[[str], Clone]
) -> None:
    made = clone(what)
    evaluated = made.run("-c", TRAIN, *options).splitlines()[-1]
    steps, last = lines(made, "train"), lines(made, "val")[-1]
    assert f"loss {last['loss']:.6g}" in evaluated
    assert last["loss"] < 0.8 * steps[0]["loss"]
    if what == "a task":
        assert f"right {last['right']:.6g}" in evaluated
    if what == "a probe":
        assert [line["step"] for line in steps if line.get("gradient_norm", 0) > 0] == [
            line["step"] for line in steps if line["step"] % 2 == 0
        ]
    if what == "an evaluation":
        assert 0 <= last["confusion_worst"] <= last["top1"]
        assert last["confusion_class"] in range(10)


STUDY = """
import json
from pathlib import Path
from largebatch.cli import main

command = ["study", "two_rates", "--folder=runs", "--at-a-time=2"]
assert main(command) == 0
rows = json.loads(Path("runs/record.json").read_text())["rows"]
assert [row["lr"] for row in rows] == [0.01, 0.1]
ended = [path.stat().st_mtime_ns for path in Path("runs").glob("*/summary.json")]
assert main(command) == 0
assert ended == [path.stat().st_mtime_ns for path in Path("runs").glob("*/summary.json")]
assert main(["eval", "runs/low"]) == 0
print(f"loss {rows[0]['loss']:.6g}")
"""


@pytest.mark.slow
def test_a_study_is_carried_out_and_concluded(clone: Callable[[str], Clone]) -> None:
    printed = clone("a study").run("-c", STUDY)
    assert "2 jobs, 0 of them done" in printed and "2 jobs, 2 of them done" in printed
    *_, evaluated, last = printed.splitlines()
    assert last in evaluated


REDUCE = """
from safetensors.torch import load_file
from largebatch.train import run
from largebatch.train.parse import parse

options = ["--schedule.length=1ep", "--batch.size=128", "--precision.compute=fp64",
           "--norm.kind=ghost", "--norm.ghost_size=32"]
for name, more in (("alone", []), ("two", ["--run.nproc=2", "--distributed.allreduce=gather"])):
    assert run(parse([f"--run.dir={name}", *options, *more])).finished
alone, two = (load_file(f"{name}/weights.safetensors") for name in ("alone", "two"))
assert all((alone[key] - two[key]).abs().max() < 1e-9 for key in alone)
"""


@pytest.mark.slow
def test_an_all_reduce_sums_the_gradients_of_two_ranks(clone: Callable[[str], Clone]) -> None:
    made = clone("an all-reduce")
    flat = '    "flat": Algorithms.start_flat,\n'
    path = made.folder / "largebatch/distributed/all_reduce.py"
    path.write_text(path.read_text().replace(flat, ""))  # what would use it is seen
    made.run("-c", REDUCE)


OPCHECK = """
import torch
from largebatch._ops.softsign import reference_softsign, softsign
from largebatch import _ops
print(_ops.backends()["softsign"]["cpu"])
for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).to(dtype).t()
    torch.testing.assert_close(softsign(x), reference_softsign(x))
x = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
assert torch.autograd.gradcheck(softsign, x) and torch.autograd.gradgradcheck(softsign, x)
torch.library.opcheck(torch.ops.largebatch.softsign.default, (x,))
"""


def test_a_kernel_has_a_reference(clone: Callable[[str], Clone]) -> None:
    made = clone("a kernel")
    printed = made.run("-c", OPCHECK, LARGEBATCH_OPS="reference")
    assert printed.strip() == "LARGEBATCH_OPS=reference"


@pytest.mark.slow
@pytest.mark.skipif(not COMPILED.exists(), reason="the operators are not compiled")
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
def test_a_kernel_agrees_with_its_reference(clone: Callable[[str], Clone]) -> None:
    """The new operator alone is compiled: the others lie in the library that is there."""
    made = clone("a kernel")
    include, define, serve = (added for _, added in EDITS["csrc/ops.cpp"])
    registration = made.folder / "alone.cpp"
    registration.write_text(
        f"#include <torch/csrc/stable/library.h>\n{include}"
        f"STABLE_TORCH_LIBRARY_FRAGMENT(largebatch, library) {{\n{define}}}\n"
        f"STABLE_TORCH_LIBRARY_IMPL(largebatch, CPU, library) {{\n{serve}}}\n"
    )
    library = made.folder / "alone.so"
    target = re.search(r'TORCH_TARGET_VERSION = "(\w+)"', (ROOT / "setup.py").read_text())
    assert target is not None
    subprocess.run(
        [
            *("g++", "-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden"),
            *(f"-DTORCH_TARGET_VERSION={target[1]}", f"-I{made.folder / 'csrc'}"),
            *(word for path in include_paths() for word in ("-isystem", path)),
            *(str(registration), str(made.folder / "csrc/softsign/cpu.cpp"), "-o", str(library)),
            *(f"-L{path}" for path in library_paths()),
            "-ltorch_cpu",
        ],
        check=True,
    )
    # Every Python of the clone loads it first: what the whole library would hold is there.
    load = f"import torch\ntorch.ops.load_library({str(library)!r})\n"
    (made.folder / "sitecustomize.py").write_text(load)
    assert made.run("-c", OPCHECK).strip() == "yes"
    words = "softsign or faces_ or every_face or equal or every_operator"
    printed = made.run("-m", "pytest", "-n0", "-v", "-k", words, *ROWS["a kernel"].tests)
    assert "FAILED" not in printed and printed.count("PASSED") >= 3, printed


PINNED = ("registry", "before", "entry", "house", "the_list")  # tests of what is listed in all


@pytest.mark.slow
def test_what_is_listed_is_covered(tmp_path: Path) -> None:
    """All of them in one copy: the tests that each row names pass with them, and cover them."""
    made = Clone(tmp_path / "clone")
    listed = {what: row for what, row in ROWS.items() if what != "a kernel"}
    for row in listed.values():
        made.add(row)
    files = sorted({test for row in listed.values() for test in row.tests})
    words = " or ".join((*(row.name for row in listed.values()), *PINNED))
    printed = made.run("-m", "pytest", "-n0", "-v", "-p", "no:cacheprovider", "-k", words, *files)
    for row in listed.values():
        for test in row.tests:
            passed = [each for each in printed.splitlines() if each.startswith(test)]
            assert any(row.name in each and "PASSED" in each for each in passed), (row.name, test)


def test_the_command_pytest_alone_starts_runs(tmp_path: Path) -> None:
    """Unlike ``python -m pytest`` it does not put the folder on the path of what tests fork."""
    command = [str(Path(sys.executable).with_name("pytest")), "-n0", "-q", "-pno:cacheprovider"]
    command += [f"--basetemp={tmp_path / 'pytest'}"]
    command += ["tests/train/test_resume.py::test_a_config_that_differs_is_refused_by_key"]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr
