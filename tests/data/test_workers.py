"""Workers that are killed, shared memory that is full or small: one line, or a run that goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from largebatch._errors import RunFailure, UserError
from largebatch.data import Batch, DataConfig, Pipeline, Request, build_source, shared_memory
from largebatch.data.custom import custom_source

Read = Callable[..., list[Batch]]
Ask = Callable[..., Request]
MIB = 1 << 20


class Floats:
    """Images of 576 KiB each."""

    num_classes = 2

    def __len__(self) -> int:
        return 200

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((3, 224, 224), float(index)), index % 2


def floats(split: str) -> Floats:
    return Floats()


def free(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Let so many bytes be free in shared memory."""
    statvfs = os.statvfs("/")
    status = os.statvfs_result([*statvfs[:1], 4096, statvfs[2], statvfs[3], size // 4096,
                                *statvfs[5:]])  # fmt: skip
    monkeypatch.setattr(os, "statvfs", lambda path: status)


def test_the_guard_counts_bytes_of_the_images_true_type(
    monkeypatch: pytest.MonkeyPatch, read: Read, ask: Ask
) -> None:
    config = DataConfig(name="mine:floats", workers=2)
    source = custom_source(floats, config, "train", None)
    free(monkeypatch, 3 * 150528 * 4 - 1)  # bytes of three, less one
    with pytest.raises(UserError, match=r"data.workers=2: their images, 0.6 MiB each, do not fit"):
        read(source, config, [ask(range(64))])
    free(monkeypatch, 3 * 150528 * 4)
    (batch,) = read(source, config, [ask(range(8))])
    assert batch.inputs[:, 0, 0, 0].tolist() == list(range(8))


@pytest.mark.parametrize("sample", [1 << 10, 150_528, 602_112, 5 * MIB, 16 * MIB])
@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("samples", [1, 8, 100, 1000])
@pytest.mark.parametrize("pinned", [False, True])
def test_what_is_in_flight_fits_the_shared_memory(
    monkeypatch: pytest.MonkeyPatch, sample: int, workers: int, samples: int, pinned: bool
) -> None:
    free(monkeypatch, 64 * MIB)
    found = shared_memory.share(sample, samples, workers, pinned)
    piece = min(samples, shared_memory.PIECE)
    if found.piece is not None:
        piece = min(piece, found.piece // sample)
    assert piece >= 1
    assert found.ahead >= 1
    # What the reader has in hand comes on top.
    in_flight = sample * piece * (workers * found.ahead + 1)
    held = 0 if found.copy or pinned else 2 * sample * samples
    assert in_flight + held <= 64 * MIB
    if workers * found.ahead * piece * sample > 32 * MIB:
        assert (piece, found.ahead) == (1, 1)


def test_plenty_of_shared_memory_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 8 << 30)
    assert shared_memory.share(150_528, 128, 2, False) == shared_memory.Share(3)
    assert shared_memory.share(602_112, 128, 2, False) == shared_memory.Share(3)
    assert shared_memory.share(602_112, 0, 2, False) == shared_memory.Share(2)


def test_ranks_of_a_host_divide_the_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 64 * MIB)
    alone = shared_memory.share(602_112, 128, 2, False)
    free(monkeypatch, 256 * MIB)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert shared_memory.share(602_112, 128, 2, False) == alone


def test_pieces_are_copied_out_of_a_small_shared_memory(
    monkeypatch: pytest.MonkeyPatch, ask: Ask
) -> None:
    """A batch larger than half of it is read all the same, with the same values."""
    config = DataConfig(name="mine:floats", workers=2)
    source = custom_source(floats, config, "train", None)
    free(monkeypatch, 64 * MIB)
    with Pipeline(source, config, 0) as pipeline:
        held = 0
        for batch in pipeline.read(ask(range(start, start + 100)) for start in (0, 100)):
            assert len(batch) == 100
            mapped = Path("/proc/self/maps").read_text(encoding="utf-8").count("/dev/shm/torch_")
            held = max(held, mapped)
        assert batch.inputs[:, 0, 0, 0].tolist() == list(range(100, 200))
        assert held <= 4  # pieces in hand; a batch has twelve


def test_a_worker_without_shared_memory_ends_the_run_in_one_line(
    monkeypatch: pytest.MonkeyPatch, read: Read, ask: Ask
) -> None:
    def full(size: int) -> Any:
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    monkeypatch.setattr(torch.UntypedStorage, "_new_shared", full)  # also in the forked workers
    config = DataConfig(name="mine:floats", workers=1)
    source = custom_source(floats, config, "train", None)
    with pytest.raises(RunFailure, match=r"no 2.3 MiB of shared memory .*28.*larger --shm-size"):
        read(source, config, [ask(range(4))])


def test_workers_that_cannot_be_started_are_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, read: Read, ask: Ask
) -> None:
    def refused() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refused)
    config = DataConfig(name="imagefolder", root=str(folder), image_size=8, workers=2)
    with pytest.raises(RunFailure, match=r"cannot be started or reached: .*Errno 11.*data.workers"):
        read(build_source(config, "train"), config, [ask([1])])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS])
def test_a_killed_worker_is_a_failure_at_the_next_batch(
    folder: Path, ask: Ask, number: signal.Signals
) -> None:
    """And only there: an exception anywhere could come in the middle of a checkpoint."""
    config = DataConfig(name="imagefolder", root=str(folder), image_size=8, workers=2)
    before = signal.getsignal(signal.SIGCHLD)
    with Pipeline(build_source(config, "train"), config, 0) as pipeline:
        batches = pipeline.read(ask([k % 14]) for k in range(10**6))
        next(batches)
        assert signal.getsignal(signal.SIGCHLD) == before
        for process in pipeline._pieces._processes:  # type: ignore[union-attr]
            os.kill(process.pid or 0, number)
            process.join()
        with pytest.raises(RunFailure, match=rf"a data worker was killed by signal {number.value}"):
            list(batches)


def exits(split: str) -> Any:
    class Exits(Floats):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return sys.exit(3) if index == 7 else super().__getitem__(index)

    return Exits()


def test_a_worker_that_ends_itself_is_a_failure(read: Read, ask: Ask) -> None:
    config = DataConfig(name="mine:exits", workers=1)
    source = custom_source(exits, config, "train", None)
    with pytest.raises(RunFailure, match=r"a data worker ended with exit code \d+"):
        read(source, config, [ask([7])])


@pytest.mark.slow
def test_a_run_in_a_small_shared_memory(tmp_path: Path) -> None:
    """64 MiB, as in a container: a run on float images of twice that a batch, end to end."""
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "class Set:\n"
        "    num_classes = 2\n"
        "    def __len__(self): return 256\n"
        "    def __getitem__(self, i): return torch.full((3, 224, 224), i / 256.0), i % 2\n"
        "def make(split): return Set()\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__()\n"
        "        self.last = torch.nn.Linear(3, num_classes)\n"
        "    def forward(self, x): return self.last(x.mean((2, 3)))\n"
    )
    train = (
        f"{sys.executable} -m largebatch train --data.name=mine:make --data.workers=2 "
        f"--batch.size=128 --schedule.length=2st --model.name=mine:Net --run.dir={tmp_path}/run"
    )
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f"mount -t tmpfs -o size=64m t /dev/shm && exec {train}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("needs a mount namespace")
    assert done.returncode == 0, done.stderr
    assert "finished" in done.stdout
