"""GPUs that the compiled library has no code for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import largebatch
from largebatch._ops.architectures import has_code, without_code


@pytest.mark.parametrize(
    ("built", "capability", "expected"),
    [
        (["8.0"], (8, 0), True),
        (["8.0"], (8, 9), True),
        (["8.6"], (8, 0), False),
        (["8.0", "9.0"], (7, 5), False),
        (["8.0", "9.0"], (10, 0), False),
        (["8.0", "9.0+PTX"], (12, 0), True),
        (["9.0a"], (9, 0), True),
        (["9.0a+PTX"], (10, 0), False),
        (["10.0", "12.0+PTX"], (12, 1), True),
        (["Hopper"], (9, 0), True),
    ],
)
def test_which_gpus_have_code(
    built: list[str], capability: tuple[int, int], expected: bool
) -> None:
    assert has_code(built, capability) == expected


def test_one_gpu_without_code_is_named() -> None:
    assert without_code(["8.0", "9.0+PTX"], [(9, 0), (8, 6)]) == ""
    said = without_code(["8.0", "9.0+PTX"], [(9, 0), (7, 5), (7, 5)])
    assert said == "built for compute capability 8.0, 9.0+PTX, but a GPU here has 7.5"


CODE = """
import torch
from largebatch import _ops
from largebatch._ops import library
torch.cuda.device_count = lambda: 1
torch.cuda.get_device_capability = lambda index: (6, 1)
library.build_record = lambda: {"cuda": "", "architectures": ["8.0", "9.0+PTX"]}
has_kernel = _ops.is_compiled("global_norm", torch.device("cuda"))
waiting = [call for call, _ in torch.cuda._queued_calls]
assert library.serve_gpus_without_code in waiting
library.serve_gpus_without_code()
assert not _ops.is_compiled("global_norm", torch.device("cuda"))
assert _ops.backends()["lars_"]["cuda"].endswith("but a GPU here has 6.1")
assert _ops.is_compiled("global_norm", torch.device("cpu")) == (_ops.face() == "compiled")
if has_kernel:  # what CUDA tensors get is the reference, which takes any device's
    norm = torch.ops.largebatch.global_norm.default
    print(norm._op_dk(torch._C.DispatchKey.CUDA, [torch.tensor([3.0, 4.0])]).item())
else:
    print(5.0)
"""


def test_the_reference_serves_a_gpu_without_code() -> None:
    """The kernels were called, and raised that there is no image of them for the device."""
    root = str(Path(largebatch.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["5.0"]
