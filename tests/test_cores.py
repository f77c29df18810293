"""Cores by affinity and by the quota of cgroups of both versions, from a made-up /proc."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from largebatch import _cores
from largebatch._cores import usable_cores
from largebatch.data.sample_source import default_workers
from largebatch.processes.environment import World
from largebatch.processes.group import set_threads

V2 = "30 23 0:26 {root} {top} rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "31 24 0:27 {root} {top} rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
ELSE = "24 1 0:2 / / rw - ext4 /dev/x rw\n25 1 0:3 / {top} rw - cgroup cgroup rw,memory\n"

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Return a function: write a /proc/self and the groups' files; there are 128 cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(128)))

    def write(membership: str, mount: str, root: str, files: dict[str, str]) -> Path:
        top = tmp_path / "cgroup"
        for name, text in files.items():
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            (top / name).write_text(text)
        (tmp_path / "cgroup-file").write_text(membership)
        process = tmp_path / "self"
        process.mkdir()
        (process / "cgroup").write_text(membership)
        (process / "mountinfo").write_text((ELSE + mount).format(root=root, top=top))
        return process

    return write


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "max 100000\n"}, 4),
        ({"a/b/cpu.max": "max 100000\n", "a/cpu.max": "200000 100000\n"}, 2),  # of one above
        ({"a/b/cpu.max": "150000 100000\n"}, 1),
        ({"a/b/cpu.max": "25000 50000\n"}, 1),
        ({"a/b/cpu.max": "max 100000\n"}, 128),
        ({"a/b/cpu.max": "99999999 100000\n"}, 128),
        ({"a/b/cpu.max": "what is this\n"}, 128),
        ({}, 128),
    ],
)
def test_version_2(make: Make, files: dict[str, str], cores: int) -> None:
    assert usable_cores(make("0::/a/b\n", V2, "/", files)) == cores


@pytest.mark.parametrize("root", ["/", "/pods/x"])
def test_a_container_sees_its_own_group_at_the_top(make: Make, root: str) -> None:
    files = {"cpu.max": "300000 100000\n"}
    assert usable_cores(make("0::/pods/x\n" if root != "/" else "0::/\n", V2, root, files)) == 3


def test_a_path_that_the_mount_does_not_show(make: Make) -> None:
    """With the host's namespace of groups, the path is not below the mount's root."""
    assert usable_cores(make("0::/../x\n", V2, "/kube/y", {"cpu.max": "300000 100000\n"})) == 3


@pytest.mark.parametrize(("quota", "cores"), [("400000", 4), ("-1", 128), ("50000", 1)])
def test_version_1(make: Make, quota: str, cores: int) -> None:
    files = {"d/cpu.cfs_quota_us": f"{quota}\n", "d/cpu.cfs_period_us": "100000\n"}
    membership = "9:memory:/d\n4:cpu,cpuacct:/d\n0::/d\n"
    assert usable_cores(make(membership, V1, "/", files)) == cores


def test_without_a_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5, 7})
    assert usable_cores(tmp_path) == 3


def test_threads_and_workers_keep_to_the_quota(make: Make, monkeypatch) -> None:
    process = make("0::/\n", V2, "/", {"cpu.max": "400000 100000\n"})
    monkeypatch.setattr(usable_cores, "__defaults__", (process,))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(16)
        set_threads(World())
        assert torch.get_num_threads() == 4
        torch.set_num_threads(3)
        set_threads(World())
        assert torch.get_num_threads() == 3  # alone, what torch has chosen is no less than enough
        set_threads(World(0, 2, 0, 2))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert default_workers() == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "0")  # of nobody: without RANK it says nothing
    assert default_workers() == 4
    ranks = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "LOCAL_WORLD_SIZE": "2"}
    for name, value in ranks.items():
        monkeypatch.setenv(name, value)
    assert default_workers() == 2
    assert Path("/proc/self") == _cores.PROCESS
