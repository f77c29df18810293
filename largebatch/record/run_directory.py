"""The directory of one run: its files, its lock, and whether it is finished."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shlex
import socket
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from largebatch._errors import UserError
from largebatch.record.files import write_atomically

POLL_SECONDS = 0.1

# A POSIX lock never conflicts inside one process, so runs of this process are told apart here. The
# process id is part of the key because a fork inherits the set but not the locks.
_held: set[tuple[int, Path]] = set()


class RunDirectory:
    """A run's files under one path; nothing is created before ``create`` or ``acquire``.

    Args:
        path: the directory, there or not.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock: int | None = None

    @classmethod
    def default_path(cls, name: str, now: datetime | None = None) -> Path:
        """Return ``runs/NAME-DATE-TIME`` in local time, with a name fit for a file system."""
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "run"
        return Path("runs") / f"{stem}-{(now or datetime.now()):%Y%m%d-%H%M%S}"

    @property
    def config(self) -> Path:
        """The resolved config, YAML."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """The metrics, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def layers(self) -> Path:
        """Norms and trust ratios of tensors, one JSON object a line; absent for most optimizers."""
        return self.path / "layers.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's events."""
        return self.path / "tensorboard"

    @property
    def report(self) -> Path:
        """The report, HTML."""
        return self.path / "report.html"

    @property
    def weights(self) -> Path:
        """The final weights and buffers, safetensors."""
        return self.path / "weights.safetensors"

    @property
    def summary(self) -> Path:
        """The figures of a finished run, JSON; there only once the run is finished."""
        return self.path / "summary.json"

    @property
    def lock(self) -> Path:
        """The lock file, which names the run's owner."""
        return self.path / "lock"

    def create(self) -> None:
        """Make the directory and its folders.

        Raises:
            UserError: it cannot be made or written.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unusable(error) from None
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise self._unusable(PermissionError(errno.EACCES, os.strerror(errno.EACCES)))

    def acquire(self, wait: float = 30.0) -> None:
        """Own the directory until ``release`` or the end of this process, however that comes.

        It is a POSIX record lock on the lock file: children do not inherit it, and the kernel drops
        it with the process. On the lock file lies the owner, for messages only.

        Args:
            wait: seconds to wait for another owner.

        Raises:
            UserError: it cannot be written, or still has another owner after ``wait`` seconds.
        """
        self.create()
        deadline = time.monotonic() + wait
        key = (os.getpid(), self.path.resolve())
        while True:
            if key not in _held and self._try_lock():
                _held.add(key)
                return
            if time.monotonic() >= deadline:
                raise UserError(
                    f"run.dir={self.path}: in use by {self._owner()}; wait for that run or choose "
                    "another run.dir"
                )
            time.sleep(min(POLL_SECONDS, max(0.0, deadline - time.monotonic())))

    def release(self) -> None:
        """Give the directory back; does nothing when it is not owned."""
        if self._lock is None:
            return
        os.close(self._lock)
        self._lock = None
        _held.discard((os.getpid(), self.path.resolve()))

    def finished(self) -> bool:
        """Return whether the run has ended and left its summary."""
        return self.summary.is_file()

    def read_summary(self) -> dict[str, Any] | None:
        """Return the figures of a finished run; None while there are none.

        Raises:
            UserError: the file is damaged.
        """
        try:
            summary = json.loads(self.summary.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UserError(f"{self.summary}: damaged ({error}); delete it to run again") from None
        if not isinstance(summary, dict):
            raise UserError(f"{self.summary}: damaged (no JSON object); delete it to run again")
        return summary

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write the figures of the finished run, whole or not at all."""
        write_atomically(self.summary, json.dumps(summary, indent=2) + "\n")

    def write_config(self, text: str) -> None:
        """Write the resolved config, whole or not at all."""
        write_atomically(self.config, text)

    def _try_lock(self) -> bool:
        try:
            descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise self._unusable(error) from None
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise self._unusable(error) from None
        owner = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now().astimezone().isoformat(timespec="seconds"),
            "command": shlex.join(sys.argv),
        }
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, (json.dumps(owner) + "\n").encode(), 0)
        # Closing any descriptor of the file would drop the lock: it stays open, and alone.
        self._lock = descriptor
        return True

    def _owner(self) -> str:
        """Describe the owner. If that is this process, its lock file must not be opened again."""
        if (os.getpid(), self.path.resolve()) in _held:
            return "another run of this process"
        try:
            owner = json.loads(self.lock.read_text(encoding="utf-8"))
            return (
                f"process {owner['pid']} on {owner['host']} since {owner['since']} "
                f"({owner['command']})"
            )
        except (OSError, ValueError, TypeError, KeyError):
            return "another process"

    def _unusable(self, error: OSError) -> UserError:
        return UserError(f"run.dir={self.path}: cannot be written ({error.strerror})")
