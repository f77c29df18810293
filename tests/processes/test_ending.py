"""The end of a group waits for gloo's threads, and for them alone."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from largebatch.processes import ending


def task(folder: Path, name: str, state: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stat").write_text(f"{folder.name} ({name}) {state} 1 1 0")


@pytest.mark.parametrize(
    ("name", "state", "at_work"),
    [
        ("pt_gloo_runloop", "R", True),
        ("pt_gloo_runloop", "D", True),
        ("pt_gloo_runloop", "S", False),
        ("gloo_tcp_loop", "R", False),
        ("a (name) of R", "R", False),
    ],
)
def test_which_threads_are_waited_for(name, state, at_work, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(ending, "TASKS", tmp_path)
    task(tmp_path / "7", name, state)
    (tmp_path / "8").mkdir()  # a thread that ends meanwhile has no file
    assert ending._at_work() is at_work


@pytest.mark.parametrize("rests", [True, False])
def test_the_end_of_a_group_waits(rests, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(ending, "TASKS", tmp_path / "tasks")
    monkeypatch.setattr(ending, "WAIT_SECONDS", 30.0 if rests else 0.3)
    task(tmp_path / "tasks" / "7", "pt_gloo_runloop", "R")
    dist.init_process_group(
        "gloo",
        init_method=f"file://{tmp_path / 'store'}",
        rank=0,
        world_size=1,
        timeout=timedelta(seconds=30),
    )
    if rests:
        threading.Timer(0.2, task, (tmp_path / "tasks" / "7", "pt_gloo_runloop", "S")).start()
    begun = time.monotonic()
    ending.end_group()
    assert 0.15 < time.monotonic() - begun < 10
    assert not dist.is_initialized()


def test_the_threads_have_the_name_that_is_looked_for(tmp_path) -> None:
    if not ending.TASKS.is_dir():
        pytest.skip("no /proc here")
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    dist.barrier()  # the thread names itself as it begins
    names = [(t / "comm").read_text().strip() for t in ending.TASKS.iterdir()]
    ending.end_group()
    assert ending.GLOO_THREAD in names
