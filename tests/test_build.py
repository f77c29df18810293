"""The build: flags, what it does when a compiler is absent or fails, sanitizers, the wheel."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import setuptools

ROOT = Path(__file__).parent.parent


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return setup.py as a module, having kept it from setting up anything."""
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    for name in ("CXX", "CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)
    for name in [name for name in os.environ if name.startswith("LARGEBATCH_")]:
        monkeypatch.delenv(name)
    return load(ROOT / "setup.py")


def test_architectures_are_translated(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.6+PTX 9.0a")
    assert build.architecture_flags(build.architectures("/nonexistent/nvcc")) == [
        "-gencode=arch=compute_86,code=sm_86",
        "-gencode=arch=compute_86,code=compute_86",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_90a,code=compute_90a",
    ]


def nvcc_that_knows(folder: Path, *names: str) -> str:
    nvcc = folder / "nvcc"
    nvcc.write_text(f"#!/bin/sh\n[ $1 = --list-gpu-arch ] && echo '{' '.join(names)}'\n")
    nvcc.chmod(0o755)
    return str(nvcc)


def test_what_nvcc_does_not_know_costs_no_other_gpu_its_kernels(
    build: ModuleType, tmp_path: Path
) -> None:
    """An nvcc of CUDA 12.4 was asked for Blackwell, refused, and all kernels were left out."""
    old = nvcc_that_knows(tmp_path, "compute_75", "compute_80", "compute_90", "compute_90a")
    assert build.architectures(old) == ["7.5", "8.0", "9.0+PTX"]
    new = nvcc_that_knows(tmp_path, *(f"compute_{n}" for n in (75, 80, 90, 100, 120)))
    assert build.architectures(new) == ["7.5", "8.0", "9.0", "10.0", "12.0+PTX"]
    with pytest.raises(build.BuildFailed, match=r"nvcc knows none of 7\.5, 8\.0"):
        build.architectures(nvcc_that_knows(tmp_path, "compute_30"))


def test_a_wrong_wish_for_cuda_ends_the_build(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LARGEBATCH_CUDA", "yes")
    with pytest.raises(SystemExit, match="LARGEBATCH_CUDA='yes': choose 0 or 1"):
        build.find_nvcc()
    monkeypatch.setenv("LARGEBATCH_CUDA", "1")
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(SystemExit, match="nvcc was not found"):
        build.find_nvcc()
    monkeypatch.setenv("LARGEBATCH_CUDA", "0")
    assert build.find_nvcc() == (None, "LARGEBATCH_CUDA=0")


def test_a_missing_compiler_is_named(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nonexistent/g++")
    with pytest.raises(build.BuildFailed, match="/nonexistent/g\\+\\+ was not found"):
        build.find_cxx()


def test_ninja_file_links_no_cuda_library_of_torch(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    text = build.ninja_file("ccache g++ -m64", "/opt/cu da/bin/nvcc")
    assert "-ltorch_cpu" in text
    assert "torch_cuda" not in text
    assert "-cudart static" in text
    assert "-lineinfo -Xfatbin -compress-all" in text
    assert "nvcc = '/opt/cu da/bin/nvcc' -ccbin g++" in text
    assert "TORCH_TARGET_VERSION=0x020b000000000000" in text
    assert "Py_LIMITED_API=0x030A0000" in text
    without = build.ninja_file("g++", None)
    assert ".cu" not in without.replace("optim_cuda.cpp", "").replace("cuda.cpp", "")


# --- Real builds ---------------------------------------------------------------------------------

STEP = """
import torch
from largebatch import _ops
from largebatch.optim import SGD
torch.manual_seed(0)
net = torch.nn.Linear(3, 1)
optimizer = SGD(net.parameters(), lr=0.1, momentum=0.9)
def loss():
    optimizer.zero_grad()
    value = (net(torch.eye(3)) - 1).square().mean()
    value.backward()
    return value
first = optimizer.step(loss).item()
for _ in range(20): last = optimizer.step(loss).item()
assert last < first, (first, last)
print(_ops.face(), _ops.__file__)
"""


def run_step(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("LARGEBATCH_")}
    return subprocess.run(
        [sys.executable, "-c", STEP],
        env={**clean, "PYTHONPATH": str(folder), **environment},
        capture_output=True,
        text=True,
        cwd="/",
    )


def sources(tmp_path: Path) -> Path:
    copied: Path = load(ROOT / "tests" / "check_wheel.py").copy_sources(tmp_path / "a copy")
    return copied


def build_in_place(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("LARGEBATCH_")}
    return subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=folder,
        env={**clean, **environment},
        capture_output=True,
        text=True,
    )


def record(folder: Path) -> dict[str, str]:
    return dict(json.loads((folder / "largebatch" / "_build.json").read_text()))


@pytest.mark.slow
def test_without_a_compiler_the_package_installs_and_trains(tmp_path: Path) -> None:
    target = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation"]
    subprocess.run(
        [*command, "--target", str(target), str(sources(tmp_path))],
        env={**os.environ, "CXX": "/nonexistent/g++"},
        check=True,
    )
    assert not list(target.rglob("*.so"))
    assert "/nonexistent/g++ was not found" in record(target)["compiled"]
    done = run_step(target)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["reference", str(target / "largebatch" / "_ops" / "__init__.py")]
    assert done.stderr.count("largebatch uses its reference ops on cpu") == 1
    assert "/nonexistent/g++ was not found" in done.stderr


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_failing_nvcc_is_reported_and_leaves_the_cpu_kernels(tmp_path: Path) -> None:
    folder = sources(tmp_path)  # its path has a space in it
    nvcc = tmp_path / "cuda" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\necho 'nvcc fatal error: this one never works' >&2; exit 1\n")
    nvcc.chmod(0o755)
    home = {"CUDA_HOME": str(tmp_path / "cuda")}
    done = build_in_place(folder, **home)
    assert done.returncode == 0, done.stderr
    assert "this one never works" in done.stdout + done.stderr
    assert "this one never works" in record(folder)["cuda"]
    assert run_step(folder).stdout.split()[0] == "compiled"
    forced = build_in_place(folder, **home, LARGEBATCH_CUDA="1")
    assert forced.returncode != 0
    assert "LARGEBATCH_CUDA=1, but the build failed" in forced.stderr
    # A later build that fails altogether must not leave the older library behind.
    assert build_in_place(folder, CXX="/nonexistent/g++").returncode == 0
    assert run_step(folder).stdout.split()[0] == "reference"


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_operators_are_clean_under_sanitizers(tmp_path: Path) -> None:
    folder = sources(tmp_path)
    built = build_in_place(folder, LARGEBATCH_SANITIZE="1")
    assert built.returncode == 0, built.stderr
    library = (folder / "largebatch" / "_C.abi3.so").read_bytes()
    assert b"__asan_report_load" in library
    assert b"__ubsan_handle" in library
    compiler = os.environ.get("CXX", "g++")
    preload = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so")
    ]
    shutil.copy(ROOT / "tests" / "test_ops.py", tmp_path)
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "LARGEBATCH_OPS": "compiled",
        "LD_PRELOAD": " ".join(preload),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    }
    # Not those that start further interpreters, nor compilation, which is torch's.
    chosen = "not face and not import and not library and not compile and not opcheck"
    options = ["-q", "-p", "no:cacheprovider", "-o", "markers=gpu", "-k", chosen]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "test_ops.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(3000)
def test_one_wheel_serves_the_newest_torch_and_2_13(tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "tests" / "check_wheel.py"), "--torch", "here", "2.13.0"]
    one_gpu = {**os.environ, "TORCH_CUDA_ARCH_LIST": "9.0"}  # each architecture takes minutes
    done = subprocess.run(script, cwd=tmp_path, env=one_gpu)
    assert done.returncode == 0
