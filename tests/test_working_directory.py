"""One rule for the folder a command runs in, however it is started.

A file there takes the place of no module, and is found where the config names it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CONSOLE = "import sys\nfrom largebatch.cli import main\nsys.exit(main())\n"  # as pip writes it
CODE = """\
import torch
from torch import nn

class Data:
    classes = "ab"
    def __len__(self):
        return 8
    def __getitem__(self, index):
        return torch.full((1, 4, 4), index / 8), index % 2

def make(split):
    return Data()

class Tied(nn.Module):
    '''Two layers of one weight, each in a block that fsdp would gather by itself.'''
    def __init__(self, num_classes):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
        self.layers[3].weight = self.layers[1].weight
        self.last = nn.Linear(16, num_classes)
    def forward(self, x):
        return self.last(self.layers(x))
"""
INTRUDERS = ("psutil", "tabulate", "safetensors", "largebatch_extra", "yaml", "pkgutil")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in INTRUDERS:
        text = f"open({str(tmp_path / 'ran')!r}, 'a').write('{name} ')\nraise ImportError\n"
        if name != "pkgutil" or sys.version_info >= (3, 11):
            (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "mydata.py").write_text(CODE)
    (tmp_path / "console").mkdir()
    (tmp_path / "console" / "largebatch").write_text(CONSOLE)
    return tmp_path


def train(folder: Path, start: list[str], *arguments: str) -> str:
    clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run(
        [*start, "train", "--data.name=mydata:make", "--model.name=mydata:Tied",
         "--data.workers=0", "--batch.size=4", "--schedule.length=1ep", "--run.dir=run",
         "--precision.compute=fp64", *arguments],
        cwd=folder, env={**clean, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert not (folder / "ran").exists(), (folder / "ran").read_text()
    return output


@pytest.mark.slow
def test_the_console_script(folder):
    start = [sys.executable, str(folder / "console" / "largebatch")]
    assert "finished" in train(folder, start)


@pytest.mark.slow
def test_ranks_of_the_console_script_and_tied_weights_under_fsdp(folder):
    start = [sys.executable, str(folder / "console" / "largebatch")]
    output = train(folder, start, "--run.nproc=2", "--distributed.engine=fsdp")
    assert "finished" in output


@pytest.mark.slow
def test_tied_weights_under_fsdp_train_as_alone(folder):
    start = [sys.executable, str(folder / "console" / "largebatch")]
    found = []
    for name, more in (("one", []), ("two", ["--run.nproc=2", "--distributed.engine=fsdp"])):
        train(folder, start, f"--run.dir={name}", "--schedule.length=5ep", *more)
        found.append(json.loads((folder / name / "summary.json").read_text())["loss"])
    assert found[1] == pytest.approx(found[0], rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("nproc", [1, 2])
def test_python_with_our_name(folder, nproc):
    """Python 3.10 has no -P: what it needs to find us by -m it takes from the folder itself."""
    (folder / "pkgutil.py").unlink(missing_ok=True)
    output = train(folder, [sys.executable, "-m", "largebatch"], f"--run.nproc={nproc}")
    assert "finished" in output


@pytest.mark.slow
def test_torchrun(folder):
    (folder / "pkgutil.py").unlink(missing_ok=True)
    torchrun = [sys.executable, "-P"] if sys.version_info >= (3, 11) else [sys.executable]
    torchrun += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    assert "finished" in train(folder, [*torchrun, "-m", "largebatch"])
