"""Two test workers and the ranks they start share two cores: one thread each, set before torch."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ranks that tests start are forked from a process that has imported torch: seconds less for each.
multiprocessing.set_forkserver_preload(
    [
        *("torch.distributed.fsdp", "torch.fx.experimental.symbolic_shapes"),
        *("torch.utils.tensorboard", "largebatch.train.session"),
    ]
)
# A suite under nohup would hand its deafness to SIGHUP on to every run that it starts.
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    with suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Tests of operators, which run once more with the CUDA kernels in the place of the CPU's.
EMULATED = {
    *("test_ops.py", "ops/test_ghost_norm.py", "ops/test_norm_steps.py", "ops/test_layerwise.py"),
    *("ops/test_hadamard.py", "ops/test_sum_shards.py", "ops/test_refusals.py"),
    *("ops/test_transforms.py", "nn/test_ghost_batch_norm.py"),
    *("optim/test_layerwise.py", "optim/test_sgd.py", "optim/test_clip.py", "optim/test_state.py"),
    "optim/test_low_precision.py",
}

# Of these, in the default suite; the rest are slow there.
EMULATED_QUICKLY = {
    *("ops/test_ghost_norm.py", "ops/test_hadamard.py", "ops/test_sum_shards.py"),
    *("optim/test_layerwise.py", "optim/test_sgd.py"),
}

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,1000",
)


def load(path: Path) -> ModuleType:
    """Import a file of the tests, which are no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests of operators on each kind of kernels."""
    name = Path(metafunc.module.__file__).relative_to(Path(__file__).parent).as_posix()
    if name in EMULATED and metafunc.definition.get_closest_marker("gpu") is None:
        # Threads of the CPU, and sizes chosen for its caches, take minutes there.
        is_slow = name not in EMULATED_QUICKLY or any(
            word in metafunc.function.__name__ for word in ("thread", "past_the_caches")
        )
        cuda = pytest.param("cuda", marks=pytest.mark.slow) if is_slow else "cuda"
        metafunc.parametrize("kernels", ["cpu", cuda], indirect=True, scope="module")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what is marked as long, unless the environment asks for it."""
    if "LARGEBATCH_LONG_TESTS" not in os.environ:
        reason = pytest.mark.skip(reason="takes many minutes: set LARGEBATCH_LONG_TESTS")
        for item in items:
            if item.get_closest_marker("long") is not None:
                item.add_marker(reason)


@pytest.fixture(scope="session")
def emulation() -> ModuleType:
    """Return tests/cuda_emulation/emulation.py."""
    return load(Path(__file__).parent / "cuda_emulation" / "emulation.py")


@pytest.fixture(scope="module", autouse=True)
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Let the CPU kernels, or the emulated CUDA kernels, serve tensors of the CPU."""
    kind = getattr(request, "param", "cpu")
    if kind == "cpu":
        yield kind
        return
    with request.getfixturevalue("emulation").serving():
        yield kind


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """One Chromium for all tests of a file, with a profile of its own and a log of its network."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


@pytest.fixture
def on_ranks():
    """Return a function: run ``work(rank, store)`` on a thread for each of ``size`` ranks."""
    import torch.distributed as dist

    def on_ranks(size: int, work: Callable[[int, dist.Store], Any]) -> list[Any]:
        store = dist.HashStore()
        found: list[Any] = [None] * size
        errors: list[BaseException] = []

        def rank_main(rank: int) -> None:
            try:
                found[rank] = work(rank, store)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=rank_main, args=(rank,)) for rank in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return found

    return on_ranks
