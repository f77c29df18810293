"""Build one wheel and run the operators' tests against it under several versions of torch.

    python tests/check_wheel.py                      # the newest torch, and 2.13.0
    python tests/check_wheel.py --torch 2.11.0 newest --wheel dist/largebatch-*.whl
    python tests/check_wheel.py --torch here 2.13.0  # what is here builds it, and runs it first

Each version gets a fresh environment with torch, the wheel and the test tools, nothing else, and
``LARGEBATCH_OPS=compiled``, so that a library that does not load fails. The version ``here`` is
that of this interpreter, which gets the wheel in a folder before all others. The wheel is built
once, by ``pip wheel``, with the torch of ``here`` if that is among the versions, otherwise with the
one that the build requirements give. Exit status 0 if all pass.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = (
    "pyproject.toml",
    "setup.py",
    "MANIFEST.in",
    "LICENSE",
    "README.md",
    "csrc",
    "largebatch",
)
TOOLS = ("pytest", "pytest-timeout", "hypothesis", "numpy")
NAME = re.compile(r"largebatch-[\d.]+-cp310-abi3-linux_\w+\.whl")


def copy_sources(target: Path) -> Path:
    """Copy what a build needs, without earlier builds; return the folder."""
    target.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", "*.so", "_build.json")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=ignore)
        elif source.exists():
            shutil.copy(source, target)
    return target


def build_wheel(folder: Path, isolated: bool = True) -> Path:
    """Run ``pip wheel``; return the wheel, having checked that it is one and tagged abi3."""
    sources, out = copy_sources(folder / "sources"), folder / "wheels"
    isolation = [] if isolated else ["--no-build-isolation"]
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--no-deps",
            *isolation,
            "-w",
            str(out),
            str(sources),
        ],
        check=True,
    )
    wheels = list(out.iterdir())
    assert len(wheels) == 1, wheels
    assert NAME.fullmatch(wheels[0].name), f"{wheels[0].name} is not an abi3 wheel"
    return wheels[0]


def check(wheel: Path, version: str, folder: Path) -> bool:
    """Install ``wheel`` beside one version of torch and run tests/test_ops.py."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["LARGEBATCH_OPS"] = "compiled"
    install = ["-m", "pip", "install", "-q"]
    if version == "here":
        python, target = sys.executable, ["--target", str(folder / "site")]
        environment["PYTHONPATH"] = str(folder / "site")
    else:
        venv.create(folder / "venv", with_pip=True)
        python, target = str(folder / "venv" / "bin" / "python"), []
        wanted = "torch" if version == "newest" else f"torch=={version}"
        subprocess.run([python, *install, wanted, *TOOLS], check=True)
    subprocess.run([python, *install, "--no-deps", *target, str(wheel)], check=True)
    tests = shutil.copy(ROOT / "tests" / "test_ops.py", folder)
    shown = "import torch, largebatch._ops as o; print(torch.__version__, o.face(), o.__file__)"
    command = [python, "-c", shown]
    state = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    print(state.stdout.strip(), flush=True)
    assert str(folder) in state.stdout, "the tests would not see the installed wheel"
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "markers=gpu", tests],
        cwd=folder,
        env=environment,
    )
    print(f"torch {version}: {'passed' if done.returncode == 0 else 'FAILED'}", flush=True)
    return done.returncode == 0


def main() -> int:
    """Parse the arguments; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", nargs="+", default=["newest", "2.13.0"], metavar="VERSION")
    parser.add_argument("--wheel", type=Path, help="an existing wheel, instead of building one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        wheel = arguments.wheel or build_wheel(folder, isolated="here" not in arguments.torch)
        print(f"wheel: {wheel.name}", flush=True)
        results = []
        for version in arguments.torch:
            place = folder / f"torch-{version}"
            place.mkdir()
            results.append(check(wheel.resolve(), version, place))
            shutil.rmtree(place)  # an environment with CUDA is gigabytes
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
