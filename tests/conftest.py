"""Two test workers and the ranks they start share two cores: one thread each, set before torch."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
# A suite under nohup would hand its deafness to SIGHUP on to every run that it starts.
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    with suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

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
