"""Atomic writes, and reads that end."""

import os
import stat
import subprocess
import sys
import threading

import pytest

from largebatch.record import NotRegular, files, read_file, write_atomically


def test_replaces_whole_content(tmp_path):
    path = tmp_path / "summary.json"
    write_atomically(path, "one")
    write_atomically(path, b"two")
    assert path.read_text() == "two"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_atomically(path, "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_pipe_is_written_through(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    read = []
    reader = threading.Thread(target=lambda: read.append(path.read_bytes()))
    reader.start()
    content = b"x" * 300_000  # more than a pipe holds
    write_atomically(path, content)
    reader.join(10)
    assert read == [content]
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_a_device_is_written_through(tmp_path):
    """Devices of the test's own: the machine's would be gone where this fails."""
    null, full = tmp_path / "null", tmp_path / "full"
    try:
        os.mknod(null, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        os.mknod(full, 0o666 | stat.S_IFCHR, os.makedev(1, 7))
        null.write_text("")
    except OSError as error:
        pytest.skip(f"no device can be made here: {error}")
    write_atomically(null, "nothing")
    assert stat.S_ISCHR(null.stat().st_mode)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(full, "too much")


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_followed(tmp_path, there):
    target, link, chain = (tmp_path / name for name in ("folder/target", "link", "chain"))
    target.parent.mkdir()
    link.symlink_to("folder/target")
    chain.symlink_to(link)
    if there:
        target.write_text("old")
    write_atomically(chain, "new")
    assert target.read_text() == "new"
    assert link.is_symlink() and chain.is_symlink()


def test_a_link_to_itself_and_a_folder_are_refused(tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(OSError, match="symbolic links"):
        write_atomically(loop, "x")
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path, "x")
    assert loop.is_symlink() and list(tmp_path.iterdir()) == [loop]


def test_mode_by_umask_and_that_of_the_file_replaced(tmp_path):
    path = tmp_path / "file"
    old = os.umask(0o027)
    try:
        write_atomically(path, "new")
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
    finally:
        os.umask(old)
    path.chmod(0o600)
    write_atomically(path, "secret")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_name_as_long_as_a_name_may_be(tmp_path):
    path = tmp_path / ("x" * 255)
    write_atomically(path, "new")
    assert path.read_text() == "new"


WRITE = """
import sys
from pathlib import Path
from largebatch.record import write_atomically
print("before", flush=True)
write_atomically(Path(sys.argv[1]), "page\\n")
print("after", flush=True)
"""


@pytest.mark.parametrize("name", ["/dev/fd/1", "link"])
def test_what_is_appended_to_is_not_replaced(tmp_path, name):
    log = tmp_path / "log"
    log.write_text("kept\n")
    (tmp_path / "link").symlink_to("/dev/stdout")
    with open(log, "ab") as file:
        code = [sys.executable, "-c", WRITE, name]
        subprocess.run(code, stdout=file, check=True, cwd=tmp_path)
    assert log.read_text() == "kept\nbefore\npage\nafter\n"


def test_what_never_ends_is_not_read(tmp_path):
    pipe, zeros = tmp_path / "pipe", tmp_path / "zeros"
    os.mkfifo(pipe)
    zeros.symlink_to("/dev/zero")
    for path in (pipe, zeros, tmp_path):
        with pytest.raises(NotRegular, match="not a regular file"):
            read_file(path)
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "nowhere")
