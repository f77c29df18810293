"""How many processor cores this process may use: by its affinity and by the quota of its cgroup.

A container is usually limited by a quota and sees every core of its host. Counted by affinity
alone, a pod with 4 of 128 cores would start 128 threads, which the kernel then throttles.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

PROCESS = Path("/proc/self")


def usable_cores(process: Path = PROCESS) -> int:
    """Return the number of cores, at least 1; a fractional quota is rounded down.

    Args:
        process: the kernel's folder for this process, with the files ``cgroup`` and ``mountinfo``.
    """
    try:
        affine = len(os.sched_getaffinity(0))
    except AttributeError:
        affine = os.cpu_count() or 1
    return max(1, int(min([affine, *_quotas(process)])))


def _quotas(process: Path) -> Iterator[float]:
    """Walk the quotas, in cores, of every group above this process that its mounts show."""
    for folder, unified in _groups(process):
        try:
            if unified:
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota = (folder / "cpu.cfs_quota_us").read_text()
                period = (folder / "cpu.cfs_period_us").read_text()
            limit = float(quota) / float(period)  # "max" is none
        except (OSError, ValueError, ZeroDivisionError):
            continue
        if limit > 0:  # version 1 writes none as -1
            yield limit


def _groups(process: Path) -> Iterator[tuple[Path, bool]]:
    """Walk the folders of the groups, each with whether it is of version 2."""
    try:
        memberships = (process / "cgroup").read_text().splitlines()
        mounts = (process / "mountinfo").read_text().splitlines()
    except OSError:
        return
    for membership in memberships:
        number, controllers, path = membership.split(":", 2)
        unified = number == "0" and not controllers
        if not (unified or "cpu" in controllers.split(",")):
            continue
        for mount in mounts:
            fields, _, rest = mount.partition(" - ")
            kind, _, options = rest.split(" ", 2)
            of_this = kind == "cgroup2" if unified else kind == "cgroup"
            if not of_this or not (unified or "cpu" in options.split(",")):
                continue
            root, top = fields.split(" ")[3:5]
            # In a container the mount may show its own group as the top, and the path the host's.
            inside = PurePosixPath(path)
            below = inside.relative_to(root) if inside.is_relative_to(root) else PurePosixPath()
            while True:
                yield Path(top) / below, unified
                if below == PurePosixPath():
                    break
                below = below.parent
