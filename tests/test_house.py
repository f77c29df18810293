"""The house by floors: a room imports only from rooms on floors below it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "largebatch"

FLOORS: tuple[tuple[str, ...], ...] = (
    (
        *("_errors", "_documents", "_paths", "_registry", "_keys", "_cache", "_cores", "_output"),
        *("_ops", "schedule", "record", "processes"),
    ),
    ("distributed", "report", "doctor"),
    ("nn", "simulate"),
    ("models", "optim", "data"),
    ("engine", "tasks", "probes", "weight_space"),
    ("train",),
    ("study", "bench", "lab", "landscape", "plan"),
    ("cli", "recipes"),
    ("__main__",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# Floor 0 holds what its own rooms stand on: the mistakes, the registry, what people write, and what
# of the machine each of them asks.
GROUND = {"_errors", "_documents", "_paths", "_registry", "_keys", "_cache", "_cores", "_output"}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def names(path: Path) -> Iterator[tuple[str, int]]:
    """Yield what a file imports of the package and in which line, wherever that stands in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        found = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in found:
            if name.startswith("largebatch."):
                yield name, node.lineno


def imports(path: Path) -> list[tuple[str, int]]:
    """Return the rooms that a file names in its imports."""
    rooms = [(name.split(".")[1], line) for name, line in names(path)]
    return [(room, line) for room, line in rooms if room in FLOOR]


def file_of(name: str) -> Path | None:
    """Return the module that ``name`` is, or is taken from."""
    for dotted in (name, name.rpartition(".")[0]):
        path = PACKAGE.parent.joinpath(*dotted.split("."))
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.exists():
                return file
    return None


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py" or p.parent != PACKAGE)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    room = room_of(path)
    assert room in FLOOR, f"{room} is no room of the house: give it a floor here and in the design"
    for other, line in imports(path):
        down = FLOOR[other] < FLOOR[room] or (FLOOR[room] == 0 and other in GROUND)
        assert other == room or down, f"{path}:{line}: {room} imports {other}, not on a floor below"


def test_no_imports_run_in_a_circle() -> None:
    graph = {path: {file_of(name) for name, _ in names(path)} - {path, None} for path in FILES}
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_an_import_that_climbs_is_seen(tmp_path: Path) -> None:
    climbing = tmp_path / "x.py"
    climbing.write_text("def f():\n    from largebatch.train.run import train\n")
    assert imports(climbing) == [("train", 2)]


@pytest.mark.parametrize("module", ["largebatch", "largebatch.optim", "largebatch.nn",
                                    "largebatch._ops", "largebatch.schedule"])  # fmt: skip
def test_light_imports_need_torch_alone(module: str) -> None:
    """`import largebatch.optim` must work where nothing but torch is installed."""
    import subprocess
    import sys

    heavy = (
        "torchvision,jsonargparse,rich,plotly,jinja2,tensorboard,safetensors,sklearn,yaml,psutil"
    )
    code = (
        f"import sys\nfor name in {heavy!r}.split(','): sys.modules[name] = None\n"
        f"import {module}\nprint({module}.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == module
