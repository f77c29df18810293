"""Six runs whose every loss, order hash and final weights are on file, bit by bit.

Whatever changes only how the code is built keeps them. `python tests/train/test_golden.py` writes
the figures of this kind of machine anew; that is the only way they change. Bits depend on the
release of torch and on the processor's instructions, so figures are kept by both: where this
machine's are not on file, the tests are skipped by name.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

FILE = Path(__file__).with_name("golden.json")
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")

# A linear classifier over pixels whose parameters are bfloat16: LARS keeps float32 masters of them.
MODEL = """
from torch import nn

def low(num_classes, image_shape):
    pixels = image_shape[0] * image_shape[1] * image_shape[2]
    layers = nn.Linear(pixels, 64), nn.ReLU(), nn.Linear(64, num_classes)
    return nn.Sequential(nn.Flatten(), *layers).bfloat16()
"""

# Ranks and options of each run.
RUNS: dict[str, tuple[int, str]] = {
    "digits, batch norm": (
        1,
        "--data.name=digits --model.name=digits_cnn --norm.kind=batch --batch.size=256",
    ),
    "F1 on arrays, ghosts on two ranks": (
        2,
        """--data.name=arrays --data.root=ARRAYS --model.name=f1 --batch.size=96 --norm.kind=ghost
        --norm.ghost_size=16 --optim.weight_decay=1e-4 --optim.clip_norm=5""",
    ),
    "mixup, smoothing, average, snapshots": (
        1,
        """--data.name=digits --model.name=f1 --norm.kind=ghost --norm.ghost_size=32
        --batch.size=128 --data.mixup=0.4 --task.label_smoothing=0.1 --ema.half_life=500sa
        --snapshot.cycles=2 --schedule.curve=sgdr""",
    ),
    "LARS, bfloat16, masters": (
        1,
        """--data.name=digits --model.name=golden_model:low --norm.kind=none --optim.name=lars
        --optim.lr=8 --precision.compute=bf16 --batch.size=256""",
    ),
    "SAM": (
        1,
        """--data.name=digits --model.name=f1 --norm.kind=ghost --norm.ghost_size=64
        --batch.size=256 --optim.sam_rho=0.05""",
    ),
    "batch and image size grow": (
        1,
        """--data.name=digits --model.name=cifar_resnet20 --norm.kind=ghost --norm.ghost_size=32
        --batch.size=64 --batch.reference=64 --optim.scaling=sqrt
        --batch.plan=[{'until':'1ep','size':64,'image_size':8},{'size':192,'image_size':12}]""",
    ),
}


def machine() -> str:
    """Return what bits depend on: torch's release and the processor's instructions."""
    flags: set[str] = set()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [x for x in info.read_text().splitlines() if x.startswith(("flags", "Features"))]
        flags = set(lines[0].partition(":")[2].split()) if lines else set()
    known = [name for name in INSTRUCTIONS if name in flags]
    return (
        f"torch {torch.__version__}, {' '.join(known) or torch.backends.cpu.get_cpu_capability()}"
    )


def write_arrays(path: Path) -> None:
    """Write images of 28 x 28 bytes whose class is a bright row."""
    draw = np.random.RandomState(0)
    sets = {}
    for part, count in (("train", 480), ("test", 100)):
        labels = draw.randint(0, 10, count)
        images = draw.randint(0, 160, (count, 28, 28)).astype(np.uint8)
        images[np.arange(count), 2 * labels + 4] |= 128
        sets |= {f"x_{part}": images, f"y_{part}": labels.astype(np.int64)}
    np.savez(path, **sets)


def figures(name: str, folder: Path) -> dict[str, Any]:
    """Train the run in ``folder`` and return what of it is kept."""
    nproc, options = RUNS[name]
    (folder / "golden_model.py").write_text(MODEL)
    arrays = folder / "arrays.npz"
    write_arrays(arrays)
    done = subprocess.run(
        [sys.executable, "-m", "largebatch", "train", f"--run.dir={folder / 'run'}"]
        + [f"--run.nproc={nproc}", "--schedule.length=2ep", "--optim.lr=0.05"]
        + [option.replace("ARRAYS", str(arrays)) for option in options.split()],
        capture_output=True,
        text=True,
        timeout=300,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "run/summary.json").read_text())
    return {
        "loss": [line["loss"].hex() for line in lines if line["split"] == "train"],
        "order_hash": [line["order_hash"] for line in lines if line["split"] == "train"],
        "validation": [
            {k: v for k, v in line.items() if k.endswith(("loss", "top1"))}
            for line in lines
            if line["split"] == "val"
        ],
        "weights_sha256": summary["weights_sha256"],
    }


@pytest.mark.parametrize("name", RUNS)
def test_every_loss_and_the_final_weights_are_those_on_file(name: str, tmp_path: Path) -> None:
    on_file = json.loads(FILE.read_text(encoding="utf-8"))
    if machine() not in on_file:
        pytest.skip(f"no golden figures for {machine()}")
    kept = on_file[machine()][name]
    assert {"loss", "order_hash", "weights_sha256"} <= kept.keys()
    found = figures(name, tmp_path)
    assert {key: found[key] for key in kept} == kept


def write(names: Iterable[str]) -> None:
    """Put the figures of this kind of machine on file."""
    on_file = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            on_file.setdefault(machine(), {})[name] = figures(name, Path(folder))
    FILE.write_text(json.dumps(on_file, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(RUNS)
