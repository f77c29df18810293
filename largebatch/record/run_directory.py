"""The directory of one run: its files, its lock, and whether it is finished."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from largebatch._errors import RunFailure, UserError
from largebatch.record.files import read_file, write_atomically
from largebatch.record.json_text import json_text, parse_json, read_object

POLL_SECONDS = 0.1

# A POSIX lock never conflicts inside one process, so runs of this process are told apart here. The
# process id is part of the key because a fork inherits the dict but not the locks.
_held: dict[tuple[int, Path], RunDirectory] = {}


class RunDirectory:
    """A run's files under one path; nothing is created before ``create`` or ``acquire``.

    Args:
        path: the directory, which need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock: int | None = None
        self._made: list[Path] = []  # in order, what was not there before

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
    def spectrum(self) -> Path:
        """Eigenvalues of the Hessian, one JSON object a line; present if a probe measures them."""
        return self.path / "spectrum.jsonl"

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
        """The figures of a finished run, JSON; present only once the run is finished."""
        return self.path / "summary.json"

    @property
    def lost(self) -> Path:
        """The reason why a run was lost (divergence or lack of memory), JSON; else absent."""
        return self.path / "lost.json"

    @property
    def task(self) -> Path:
        """The meaning of the task's figures, JSON; absent in runs of older versions."""
        return self.path / "task.json"

    @property
    def batch_plan(self) -> Path:
        """The batches that a run has chosen, as a config that replays them, YAML."""
        return self.path / "batch_plan.yaml"

    @property
    def lock(self) -> Path:
        """The lock file, which names the run's owner."""
        return self.path / "lock"

    def create(self) -> None:
        """Make the directory and its folders.

        Raises:
            UserError: the directory cannot be made or written.
        """
        try:
            str(self.path).encode()  # TensorBoard takes no name that is not text
            self._make(self.checkpoints)
        except (OSError, ValueError) as error:  # ValueError: no text, or a null character
            raise self._unusable(error) from None
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise self._unusable(PermissionError(errno.EACCES, os.strerror(errno.EACCES)))

    def _make(self, path: Path) -> None:
        """Make ``path`` and remember which of its folders were absent, one at a time.

        Another owner may take an empty one of its own away again in between.
        """
        if path.is_dir():
            return
        if path.parent != path:
            self._make(path.parent)
        try:
            path.mkdir()
            self._made.append(path)
        except FileExistsError:
            if not path.is_dir():
                raise
        except FileNotFoundError:  # the parent has gone again
            path.mkdir(parents=True, exist_ok=True)
            self._made += [path.parent, path]

    def acquire(self, wait: float = 30.0) -> None:
        """Lock the directory until ``release`` or the end of this process.

        The lock is a POSIX record lock on the lock file. Children do not inherit the lock, and the
        kernel releases it when the process ends in any way. The content of the lock file names the
        owner, for messages only.

        Args:
            wait: seconds to wait for another owner to release the lock.

        Raises:
            UserError: the directory cannot be written, or still has another owner after ``wait``
                seconds.
        """
        deadline = time.monotonic() + wait
        try:
            while not self._taken():
                if time.monotonic() >= deadline:
                    raise UserError(
                        f"run.dir={self.path}: in use by {self._owner()}; wait for that run or "
                        "choose another run.dir"
                    )
                time.sleep(min(POLL_SECONDS, max(0.0, deadline - time.monotonic())))
        except UserError:
            self._withdraw()
            raise

    def release(self) -> None:
        """Release the lock; does nothing without a lock.

        If no run has begun (there is no config), the files that ``acquire`` made are removed.
        """
        if self._lock is None:
            return
        if self.lock in self._made and not self.config.exists() and _is_at(self._lock, self.lock):
            self.lock.unlink()
        self._withdraw()
        os.close(self._lock)
        self._lock = None
        _held.pop((os.getpid(), self.path.resolve()), None)

    def finished(self) -> bool:
        """Return whether the run has ended and left its summary."""
        return self.summary.is_file()

    def read_summary(self) -> dict[str, Any] | None:
        """Return the figures of a finished run; None for other runs.

        Raises:
            UserError: the file is damaged.
        """
        return read_object(self.summary, "delete it to run again")

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write the figures of the finished run, completely or not at all."""
        write_atomically(self.summary, json_text(summary, indented=True) + "\n")

    def read_task(self) -> dict[str, Any] | None:
        """Return the meaning of the task's figures, as untrusted data; None if not written.

        Raises:
            UserError: the file is damaged.
        """
        return read_object(self.task, "delete it to go by top1 or the loss")

    def write_task(self, facts: dict[str, Any]) -> None:
        """Write the facts about the run's task, completely or not at all."""
        write_atomically(self.task, json_text(facts, indented=True) + "\n")

    def read_lost(self) -> str | None:
        """Return why the run cannot continue, None if it can.

        Raises:
            UserError: the file is damaged.
        """
        found = read_object(self.lost, "delete it to go on")
        return None if found is None else str(found.get("reason"))

    def write_lost(self, reason: str | None) -> None:
        """Write why the run cannot continue; None: it can continue again."""
        if reason is None:
            self.lost.unlink(missing_ok=True)
        else:
            write_atomically(self.lost, json_text({"reason": reason}, indented=True) + "\n")

    def write_config(self, text: str) -> None:
        """Write the resolved config, completely or not at all."""
        write_atomically(self.config, text)

    def _withdraw(self) -> None:
        """Remove the folders that were made for a run that has not begun."""
        made, self._made = self._made, []
        if not os.path.exists(self.config):
            for path in reversed(made):
                with suppress(OSError):  # not empty, so not ours alone
                    path.rmdir()

    def _taken(self) -> bool:
        self.create()  # each time: an owner that is refused takes away what it made
        key = (os.getpid(), self.path.resolve())
        if key in _held or not self._try_lock():
            return False
        _held[key] = self
        return True

    def _try_lock(self) -> bool:
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
            absent = not self.lock.exists()
            descriptor = os.open(self.lock, flags, 0o666)
        except FileNotFoundError:  # the folder went meanwhile
            return False
        except OSError as error:
            raise self._unusable(error) from None
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_at(descriptor, self.lock):  # removed since it was opened
                os.close(descriptor)
                return False
            owner = {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "since": datetime.now().astimezone().isoformat(timespec="seconds"),
            }
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, (json_text(owner) + "\n").encode(), 0)
        except OSError as error:
            others = error.errno in (errno.EACCES, errno.EAGAIN)
            if absent and not others:
                self.lock.unlink(missing_ok=True)
            os.close(descriptor)
            if others:
                return False
            raise self._unusable(error) from None
        # Closing any descriptor of the file would drop the lock: it stays open, and alone.
        self._lock = descriptor
        if absent:
            self._made.append(self.lock)
        return True

    def _confirm(self) -> None:
        """See that the lock held is the one that others meet, and lock again if it was removed.

        Raises:
            RunFailure: another run owns the directory by now.
        """
        held = self._lock
        if held is None or _is_at(held, self.lock):
            return
        self.create()
        if not self._try_lock():
            raise RunFailure(
                f"run.dir={self.path}: its lock file was removed, and {self._owner()} has taken the"
                " folder over; this run ends unsaved, so as not to spoil the other's files"
            )
        os.close(held)

    def _owner(self) -> str:
        """Describe the owner. If that is this process, its lock file must not be opened again."""
        if _held.get((os.getpid(), self.path.resolve()), self) is not self:
            return "another run of this process"
        try:
            owner = parse_json(read_file(self.lock))
            return f"process {owner['pid']} on {owner['host']} since {owner['since']}"
        except (OSError, ValueError, TypeError, KeyError):
            return "another process"

    def _unusable(self, error: OSError | ValueError) -> UserError:
        reason = error.strerror if isinstance(error, OSError) else error
        return UserError(f"run.dir={str(self.path)!r}: cannot be written ({reason})")


def confirm_owned(path: Path) -> None:
    """Check that this process still owns a run directory that it has acquired; ignore others.

    Raises:
        RunFailure: the lock file was removed, and another run owns the directory now.
    """
    owner = _held.get((os.getpid(), path.resolve()))
    if owner is not None:
        owner._confirm()


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one at ``path``."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
