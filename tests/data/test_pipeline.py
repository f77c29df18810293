"""The same pixels for any workers, ranks and batches; exact tails; workers that end."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from largebatch._errors import UserError
from largebatch.data import Batch, DataConfig, EpochOrder, Pipeline, Request, Source, build_source

Read = Callable[..., list[Batch]]
Ask = Callable[..., Request]
SEED = 1


def requests(n: int, sizes: list[int], epoch: int = 2, **changes: object) -> list[Request]:
    """Cut an epoch's order into requests of the given sizes, the last of them repeated."""
    order, start, cut = EpochOrder(n, SEED), 0, list[Request]()
    while start < n:
        size = sizes[min(len(cut), len(sizes) - 1)]
        stop = min(start + size, n)
        indices = order.indices(epoch, start, stop)
        cut.append(Request(epoch, indices, np.arange(start, stop), **changes))  # type: ignore
        start = stop
    return cut


def by_index(batches: list[Batch]) -> dict[int, tuple[torch.Tensor, int]]:
    found: dict[int, tuple[torch.Tensor, int]] = {}
    for batch in batches:
        for place, index in enumerate(batch.indices.tolist()):
            assert index not in found
            found[index] = batch.inputs[place], int(batch.targets[place])
    return found


def same(first: dict[int, tuple[torch.Tensor, int]], second: dict) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(pixels, second[index][0]) and label == second[index][1]
        for index, (pixels, label) in first.items()
    )


@pytest.mark.parametrize("channels_last", [False, True])
def test_any_workers_and_batches_give_the_same_pixels(
    folder: Path, read: Read, channels_last: bool
) -> None:
    config = DataConfig(name="imagefolder", root=str(folder), image_size=24)
    source = build_source(config, "train")
    reference = None
    for workers, sizes in ((0, [14]), (1, [5]), (2, [1, 3, 2]), (3, [4])):
        config.workers = workers
        batches = read(source, config, requests(14, sizes), channels_last=channels_last)
        expected = [request.indices.tolist() for request in requests(14, sizes)]
        assert [batch.indices.tolist() for batch in batches] == expected
        found = by_index(batches)
        reference = reference or found
        assert same(found, reference)
    assert reference is not None
    other_epoch = by_index(read(source, config, requests(14, [14], epoch=3)))
    changed = [not torch.equal(other_epoch[i][0], reference[i][0]) for i in range(14)]
    assert all(changed)


def test_batches_longer_than_a_worker_reads_at_once_keep_their_order(
    folder: Path, read: Read, ask: Ask
) -> None:
    config = DataConfig(name="imagefolder", root=str(folder), image_size=8, workers=2)
    source = build_source(config, "train")
    wanted = np.random.default_rng(0).integers(0, 14, 150)
    empty: list[int] = []
    batches = read(source, config, [ask(wanted), ask(empty), ask(wanted[::-1]), ask(empty)])
    assert [len(batch) for batch in batches] == [150, 0, 150, 0]
    assert batches[1].inputs.shape == (0, 3, 8, 8)
    assert torch.equal(batches[0].inputs.flip(0), batches[2].inputs)
    assert torch.equal(batches[0].targets.flip(0), batches[2].targets)


@pytest.mark.parametrize("channels_last", [False, True])
def test_crop_and_flip_in_memory_do_not_depend_on_the_batch(
    npz: Callable[..., Path], read: Read, channels_last: bool
) -> None:
    config = DataConfig(name="arrays", root=str(npz()))
    source = build_source(config, "train")
    whole = by_index(read(source, config, requests(40, [40])))
    parts = by_index(read(source, config, requests(40, [7, 1, 16]), channels_last=channels_last))
    assert same(parts, whole)


def test_crop_and_flip_are_windows_of_the_padded_image(
    npz: Callable[..., Path], read: Read, ask: Ask
) -> None:
    config = DataConfig(name="arrays", root=str(npz()))
    source = build_source(config, "train")
    stored = np.load(config.root or "")["x_train"].transpose(0, 3, 1, 2)
    seen: set[tuple[int, int, bool]] = set()
    for epoch in range(6):
        (batch,) = read(source, config, [ask(range(40), epoch)], dtype=torch.float64)
        mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in
                     (source.mean, source.std))  # fmt: skip
        pixels = ((batch.inputs * std + mean) * 255).round().to(torch.uint8).numpy()
        padded = np.pad(stored, ((0, 0), (0, 0), (2, 2), (2, 2)))
        for index in range(40):
            matches = [
                (top, left, flip)
                for top in range(5)
                for left in range(5)
                for flip in (False, True)
                if np.array_equal(
                    pixels[index],
                    padded[index, :, top : top + 16, left : left + 16][..., :: -1 if flip else 1],
                )
            ]
            assert len(matches) == 1
            seen.update(matches)
    # 240 draws of 50 windows: nearly all occur.
    assert len(seen) > 45
    config.augment = "none"
    (batch,) = read(source, config, [ask(range(40))], dtype=torch.float64)
    pixels = ((batch.inputs * std + mean) * 255).round().to(torch.uint8).numpy()
    assert np.array_equal(pixels, stored)


def test_evaluation_is_never_augmented(npz: Callable[..., Path], read: Read, ask: Ask) -> None:
    config = DataConfig(name="arrays", root=str(npz()), mixup=1.0, cutmix=1.0)
    source = build_source(config, "val")
    first, second = (
        read(source, config, [ask(range(10), epoch)], train=False)[0] for epoch in (0, 1)
    )
    assert torch.equal(first.inputs, second.inputs)
    assert first.mixed is None


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("n", [1, 3, 40])
def test_every_sample_once_under_any_world_size(
    npz: Callable[..., Path], read: Read, world_size: int, n: int
) -> None:
    """Ranks with a share of each batch, the last batch short and some ranks without a sample."""
    config = DataConfig(name="arrays", root=str(npz()), limit=n)
    source = build_source(config, "train")
    seen: list[int] = []
    for rank in range(world_size):
        shares = [
            Request(
                request.epoch,
                np.array_split(request.indices, world_size)[rank],
                np.array_split(request.positions, world_size)[rank],
            )
            for request in requests(n, [6])
        ]
        batches = read(source, config, shares)
        assert len(batches) == len(shares)
        seen += [index for batch in batches for index in batch.indices.tolist()]
    assert sorted(seen) == list(range(n))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_inputs_are_normalised_in_the_type_and_format_asked_for(
    npz: Callable[..., Path], read: Read, ask: Ask, dtype: torch.dtype, channels_last: bool
) -> None:
    config = DataConfig(name="arrays", root=str(npz()), augment="none")
    source = build_source(config, "train")
    (batch,) = read(source, config, [ask(range(9))], dtype=dtype, channels_last=channels_last)
    stored = np.load(config.root or "")["x_train"][:9].transpose(0, 3, 1, 2) / 255
    mean, std = (np.array(v)[:, None, None] for v in (source.mean, source.std))
    expected = torch.from_numpy((stored - mean) / std)
    assert batch.inputs.dtype == dtype
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6}.get(dtype, 1e-2)
    assert torch.allclose(batch.inputs.double(), expected, atol=tolerance, rtol=tolerance)
    form = torch.channels_last if channels_last else torch.contiguous_format
    assert batch.inputs.is_contiguous(memory_format=form)


def test_the_image_size_may_change_from_request_to_request(
    npz: Callable[..., Path], folder: Path, read: Read, ask: Ask
) -> None:
    arrays = DataConfig(name="arrays", root=str(npz()), image_size=12)
    files = DataConfig(name="imagefolder", root=str(folder), image_size=12, workers=1)
    for config in (arrays, files):
        source = build_source(config, "train")
        assert source.image_shape == (3, 12, 12)
        batches = read(source, config, [ask([1, 2]), ask([3], extent=20), ask([4])])
        assert [batch.inputs.shape[-1] for batch in batches] == [12, 20, 12]


def test_a_pipeline_left_in_the_middle_starts_afresh(folder: Path, ask: Ask) -> None:
    config = DataConfig(name="imagefolder", root=str(folder), image_size=8, workers=2)
    with Pipeline(build_source(config, "train"), config, SEED) as pipeline:
        batches = pipeline.read([ask([k % 14]) for k in range(50)])
        assert next(batches).indices.tolist() == [0]
        again = list(pipeline.read([ask([9, 2]), ask([5])]))
        assert [batch.indices.tolist() for batch in again] == [[9, 2], [5]]
        # Larger requests rebuild the workers.
        assert [len(b) for b in pipeline.read([ask(np.arange(200) % 14)])] == [200]


def test_reading_leaves_the_global_generators_alone(folder: Path, read: Read, ask: Ask) -> None:
    def states() -> tuple[bytes, bytes, object]:
        return (
            torch.get_rng_state().numpy().tobytes(),
            np.random.get_state()[1].tobytes(),  # type: ignore[index] # noqa: NPY002
            random.getstate(),
        )

    before = states()
    for workers in (0, 2):
        config = DataConfig(name="imagefolder", root=str(folder), image_size=8, workers=workers)
        read(build_source(config, "train"), config, [ask(range(14))])
        custom = DataConfig(name=f"{__name__}:noisy", workers=workers)
        read(noisy_source(custom), custom, [ask(range(5))])
    assert states() == before


class Noisy:
    """A map-style data set that draws from every global generator."""

    num_classes = 3

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        numbers = [torch.rand(()).item(), np.random.rand(), random.random()]  # noqa: NPY002
        return torch.tensor([*numbers, float(index)]).view(1, 2, 2), index % 3


def noisy(split: str) -> Noisy:
    return Noisy()


def noisy_source(config: DataConfig) -> Source:
    from largebatch.data.custom import custom_source

    return custom_source(noisy, config, "train", None)


def test_custom_data_sets_draw_the_same_in_any_worker(read: Read, ask: Ask) -> None:
    found = []
    for workers, order in ((0, [0, 1, 2, 3, 4, 5]), (2, [5, 3, 1, 0, 2, 4])):
        config = DataConfig(name="x:y", workers=workers)
        source = noisy_source(config)
        assert (source.num_classes, source.image_shape, len(source)) == (3, (1, 2, 2), 6)
        found.append(by_index(read(source, config, [ask([i], epoch=1) for i in order])))
    assert same(*found)
    numbers = torch.stack([found[0][i][0].view(4)[:3] for i in range(6)])
    assert len(numbers.unique()) == 18
    assert found[0][4][0].view(4)[3] == 4.0
    config = DataConfig(name="x:y", workers=0)
    other = by_index(read(noisy_source(config), config, [ask(range(6), epoch=2)]))
    assert not any(torch.equal(other[i][0], found[0][i][0]) for i in range(6))


def test_mistakes_of_custom_data_sets_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Read, ask: Ask
) -> None:
    (tmp_path / "mysets.py").write_text(
        "import torch\n"
        "class Set(list):\n"
        "    num_classes = 2\n"
        "def good(split): return Set([(torch.zeros(1, 4, 4), 0), (torch.zeros(1, 4, 4), 1)])\n"
        "def label(split): return Set([(torch.zeros(1, 4, 4), 0), (torch.zeros(1, 4, 4), 2)])\n"
        "def shape(split): return Set([(torch.zeros(1, 4, 4), 0), (torch.zeros(1, 5, 4), 1)])\n"
        "def plain(split): return [(torch.zeros(1, 4, 4), 0)]\n"
        "def empty(split): return Set()\n"
        "def number(split): return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def build(name: str) -> tuple[Source, DataConfig]:
        config = DataConfig(name=f"mysets:{name}", workers=1)
        return build_source(config, "train"), config

    source, config = build("good")
    assert read(source, config, [ask([1, 0])])[0].targets.tolist() == [1, 0]
    for name, message in {
        "label": r"data.name='mysets:label': label 2 of sample 1 is out of range",
        "shape": r"sample 1 is \(1, 5, 4\), others are \(1, 4, 4\); set data.image_size",
    }.items():
        source, config = build(name)
        with pytest.raises(UserError, match=message) as caught:
            read(source, config, [ask([0, 1])])
        assert "Traceback" not in str(caught.value)
    for name, message in {
        "plain": r"set model.num_classes, or give the data set",
        "empty": r"the data set of split 'train' is empty",
        "number": r"returned int; expected a map-style data set",
        "absent": r"data.name='mysets:absent'",
    }.items():
        with pytest.raises(UserError, match=message):
            build(name)


def test_close_ends_the_workers(folder: Path, ask: Ask) -> None:
    mine = psutil.Process()
    before = {child.pid for child in mine.children(recursive=True)}
    config = DataConfig(name="imagefolder", root=str(folder), image_size=8, workers=2)
    pipeline = Pipeline(build_source(config, "train"), config, SEED)
    batches = pipeline.read([ask([k % 14]) for k in range(9)])
    next(batches)
    workers = {child.pid for child in mine.children(recursive=True)} - before
    assert len(workers) == 2
    pipeline.close()
    assert not {child.pid for child in mine.children(recursive=True)} & workers


def test_a_killed_worker_ends_the_run_instead_of_hanging_it(folder: Path) -> None:
    parent = started(folder, pause=0.01)
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "batch\n"
        psutil.Process(parent.pid).children(recursive=True)[0].kill()
        _, errors = parent.communicate(timeout=60)
        assert parent.returncode == 1
        assert "killed by signal" in errors
    finally:
        parent.kill()
        parent.wait()


def started(folder: Path, pause: float) -> subprocess.Popen[str]:
    """Start a process that reads without end with two workers and prints a line a batch."""
    program = (
        "import time, numpy as np\n"
        "from largebatch.data import *\n"
        f"config = DataConfig(name='imagefolder', root={str(folder)!r}, image_size=8, workers=2)\n"
        "pipeline = Pipeline(build_source(config, 'train'), config, 0)\n"
        "one = np.zeros(1, dtype=np.int64)\n"
        "batches = pipeline.read(Request(0, one, one) for _ in range(10**9))\n"
        "while True:\n"
        f"    next(batches); print('batch', flush=True); time.sleep({pause})\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_workers_die_with_their_parent_and_leave_signals_to_it(folder: Path) -> None:
    parent = started(folder, pause=0.05)
    workers = []
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "batch\n"
        workers = psutil.Process(parent.pid).children(recursive=True)
        assert len(workers) == 2
        for worker in workers:
            worker.send_signal(signal.SIGTERM)
        for _ in range(20):
            assert parent.stdout.readline() == "batch\n"
        assert all(worker.is_running() for worker in workers)
    finally:
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 10
    while any(w.is_running() and w.status() != psutil.STATUS_ZOMBIE for w in workers):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)
