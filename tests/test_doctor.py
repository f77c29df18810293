"""doctor: every absent thing has a reason, and nothing raises on odd machines."""

import ctypes
import io
import json
import platform
import shutil

import pytest
import torch

import largebatch
from largebatch import _ops, doctor
from largebatch.doctor import Check, collect, print_table, to_json

EXPECTED = [
    "Python",
    "system",
    "largebatch",
    "torch",
    "processor",
    "memory",
    "shared memory",
    "allocator",
    "C++ compiler",
    "CUDA toolkit",
    "CUDA driver",
    "CPU ops",
    "CUDA ops",
    "torus schedule",
    "NCCL",
    "gloo",
    "MPI back end",
    "MPI launcher",
    "Slurm launcher",
    "torchvision",
    "DALI",
    "DeepSpeed",
    "NVML",
    "apex",
]


def found():
    return {check.name: check for check in collect()}


@pytest.fixture
def empty_path(monkeypatch):
    """A machine without any program."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CUDA_HOME", "/nowhere")


def package(folder, name, *modules):
    """Make an importable package with submodules."""
    for module in ("", *modules):
        (folder / name / module).mkdir(parents=True, exist_ok=True)
        (folder / name / module / "__init__.py").write_text("raise RuntimeError('imported')")


def test_all_is_named_and_every_absent_thing_has_a_reason():
    checks = collect()
    names = [check.name for check in checks]
    assert [name for name in names if not name.startswith("GPU")] == EXPECTED
    assert any(name.startswith("GPU") for name in names)
    for check in checks:
        assert check.status in ("ok", "absent", "problem")
        assert check.reason or check.status == "ok", check
        assert check.value or check.status != "ok" or check.name in ("gloo", "MPI back end"), check


def test_versions():
    checks = found()
    assert checks["Python"].value.endswith(platform.python_version())
    assert checks["largebatch"].value == largebatch.__version__
    assert checks["torch"].value == torch.__version__


def test_operators_are_reported_face_by_face(monkeypatch):
    faces = {
        "sgd_": {"reference": "yes", "cpu": "yes", "cuda": "no nvcc at build time"},
        "global_norm": {"reference": "yes", "cpu": "yes", "cuda": "no nvcc at build time"},
    }
    monkeypatch.setattr(_ops, "backends", lambda: faces)
    checks = found()
    assert checks["CPU ops"] == Check("CPU ops", "ok", "compiled: sgd_, global_norm")
    assert checks["CUDA ops"].status == "absent"
    assert checks["CUDA ops"].reason.count("no nvcc at build time") == 1
    faces["sgd_"]["cuda"] = "yes"
    assert "compiled: sgd_" in found()["CUDA ops"].value


def test_this_builds_operators():
    checks = found()
    expected = "ok" if _ops.face() == "compiled" else "absent"
    assert checks["CPU ops"].status == expected


def test_a_machine_without_programs(empty_path):
    checks = found()
    for name in ("C++ compiler", "CUDA toolkit", "MPI launcher", "Slurm launcher"):
        assert checks[name].status == "absent"
        assert "PATH" in checks[name].reason


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_machine_without_a_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert found()["GPUs"].status in ("absent", "problem")
    assert found()["GPUs"].reason


def test_a_machine_with_gpus(monkeypatch):
    class Properties:
        name, total_memory, major, minor = "NVIDIA H200", 141 * 2**30, 9, 0

    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    assert found()["GPU 1"].value == "NVIDIA H200, 141 GiB, sm_90"


def test_a_probe_that_fails_is_a_line_and_not_a_traceback(monkeypatch):
    def broken():
        raise OSError("odd\nmachine")

    monkeypatch.setattr(doctor, "cpu_model", broken)
    check = found()["processor"]
    assert (check.status, check.reason) == ("problem", "OSError: odd machine")


def test_the_unrelated_apex_is_told_from_nvidias(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    package(tmp_path, "apex", "lib")
    assert found()["apex"].status == "absent"
    assert "another project" in found()["apex"].reason
    package(tmp_path, "apex", "multi_tensor_apply", "optimizers")
    assert found()["apex"].status == "ok"
    assert "without its compiled kernels" in found()["apex"].reason
    (tmp_path / "amp_C.py").write_text("")
    assert found()["apex"].reason == ""


def test_packages_are_found_without_importing_them(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    package(tmp_path, "deepspeed")
    assert found()["DeepSpeed"] == Check("DeepSpeed", "ok", "of unknown version")


def test_packages_that_are_not_there_say_how_to_get_them(monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    checks = found()
    assert "largebatch[dali]" in checks["DALI"].reason
    assert "largebatch[deepspeed]" in checks["DeepSpeed"].reason
    assert checks["apex"].status == checks["torchvision"].status == "absent"


def test_shared_memory_of_a_container(monkeypatch):
    usage = shutil.disk_usage("/")._replace(total=64 * 2**20)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    check = found()["shared memory"]
    assert check.status == "problem"
    assert "--shm-size" in check.reason


def test_allocators(monkeypatch):
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    assert "MALLOC_ARENA_MAX=1" in found()["allocator"].reason
    assert "kept warm" in found()["allocator"].value
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libjemalloc.so.2")
    assert found()["allocator"].value == "jemalloc"
    monkeypatch.delenv("LD_PRELOAD")
    monkeypatch.setattr(doctor.ctypes, "CDLL", lambda name: object())
    assert found()["allocator"].status == "absent"


def test_a_driver(monkeypatch):
    class Driver:
        @staticmethod
        def cuDriverGetVersion(pointer):
            ctypes.cast(pointer, ctypes.POINTER(ctypes.c_int))[0] = 13020
            return 0

    monkeypatch.setattr(doctor.ctypes, "CDLL", lambda name: Driver)
    assert found()["CUDA driver"].value.endswith("CUDA 13.2")


def test_table_and_json_say_the_same():
    checks = [
        Check("Python", "ok", "CPython 3.11.7"),
        Check("apex", "absent", "", "not installed [really]"),
        Check("gloo", "problem", "", "broken"),
    ]
    text = io.StringIO()
    print_table(checks, text)
    lines = [line.split() for line in text.getvalue().splitlines() if line.strip()]
    assert lines[1:] == [
        ["Python", "ok", "CPython", "3.11.7"],
        ["apex", "absent", "not", "installed", "[really]"],
        ["gloo", "problem", "broken"],
    ]
    read = json.loads(to_json(checks))
    assert read["largebatch"] == largebatch.__version__
    assert [Check(**check) for check in read["checks"]] == checks
