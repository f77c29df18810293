"""What is loaded from the cache is this user's alone, wherever the cache is."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from largebatch import _cache
from largebatch._cache import cache_folder, trusted
from largebatch._ops import torus_library

NOBODY = 65534
root = pytest.mark.skipif(os.getuid() != 0, reason="only root can make another user's files")


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Return the cache asked for and the one for want of it."""
    temporary = tmp_path / "temporary"
    temporary.mkdir(mode=0o777)
    temporary.chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    _cache._own.cache_clear()
    return tmp_path / "cache" / "largebatch", temporary / f"largebatch-{os.getuid()}"


def test_the_usual_place_is_made_private(places, monkeypatch) -> None:
    before = os.umask(0o002)
    try:
        assert cache_folder("x") == places[0] / "x"
    finally:
        os.umask(before)
    for folder in (places[0], places[0] / "x"):
        assert folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(places[0].parent / "home"))
    assert cache_folder() == places[0].parent / "home" / ".cache" / "largebatch"


def test_a_folder_that_an_umask_left_open_is_closed(places) -> None:
    places[0].mkdir(parents=True)
    places[0].chmod(0o775)
    assert cache_folder() == places[0]
    assert places[0].stat().st_mode & 0o777 == 0o755
    (places[0] / "x").mkdir()
    (places[0] / "x").chmod(0o777)  # whose content may be anybody's
    assert cache_folder("x") == places[1] / "x"


@root
@pytest.mark.parametrize("where", ["largebatch", "largebatch/x"])
def test_what_another_user_made_first_is_not_used(places, where) -> None:
    folder = places[0].parent / where
    folder.mkdir(parents=True)
    os.chown(folder, NOBODY, NOBODY)
    assert cache_folder("x") == places[1] / "x"


@root
def test_where_every_place_is_anothers_there_is_one_of_this_process(places) -> None:
    for place in places:
        place.mkdir(parents=True)
        os.chown(place, NOBODY, NOBODY)
    found = cache_folder("x")
    assert found.parent not in places and trusted(found) and trusted(found.parent)
    assert cache_folder("x") == found


def test_a_link_is_no_folder(places, tmp_path) -> None:
    (tmp_path / "elsewhere").mkdir()
    places[0].parent.mkdir()
    places[0].symlink_to(tmp_path / "elsewhere")
    assert cache_folder() == places[1]


@pytest.mark.parametrize("value", ["", "relative"])
def test_without_a_home(places, monkeypatch, value) -> None:
    """As of a user id that no one has, in a container."""

    def unknown(_: object) -> None:
        raise KeyError

    monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert cache_folder() == places[1]
    assert torus_library.state() == "not yet"


PLANTED = """
#include <stdio.h>
#include <stdlib.h>
__attribute__((constructor)) static void run(void) { fclose(fopen(getenv("MARK"), "w")); }
"""


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile a library whose constructor leaves a mark."""
    folder = tmp_path_factory.mktemp("planted")
    (folder / "planted.c").write_text(PLANTED)
    library = folder / "planted.so"
    command = ["gcc", "-shared", "-fPIC", "-o", str(library), str(folder / "planted.c")]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no gcc here")
    return library


@pytest.mark.parametrize("how", ["file", "folder", "link", "parent", "mode"])
def test_a_planted_library_does_not_run(places, planted, tmp_path, monkeypatch, how) -> None:
    """The constructor of a library that another may have written is never run."""
    if how in ("file", "folder", "parent") and os.getuid() != 0:
        pytest.skip("only root can make another user's files")
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    folder = torus_library.cache()
    library = torus_library._library(folder)
    if how == "link":
        library.symlink_to(planted)
    else:
        shutil.copy(planted, library)
    if how == "mode":
        library.chmod(0o775)
    elif how != "link":
        owned = {"file": [library], "folder": [folder, library]}
        for path in owned.get(how, [folder.parent, folder, library]):
            os.chown(path, NOBODY, NOBODY)
    monkeypatch.setattr(torus_library, "_compile", lambda folder: None)
    monkeypatch.delenv("LARGEBATCH_OPS", raising=False)
    torus_library.load.cache_clear()
    try:
        module, reason = torus_library.load()
    finally:
        torus_library.load.cache_clear()
    assert module is None and reason
    assert not (tmp_path / "mark").exists()
    assert torus_library.state() == "not yet"


def test_a_library_of_ones_own_is_loaded_whatever_the_umask(places, planted, monkeypatch) -> None:
    from torch.utils import cpp_extension

    def load(name: str, *_: object, build_directory: str, **options: object) -> None:
        shutil.copy(planted, Path(build_directory, f"{name}.so"))
        Path(build_directory, f"{name}.so").chmod(0o775)

    monkeypatch.setattr(cpp_extension, "load", load)
    assert torus_library.build() == ""
    assert torus_library.state() == "compiled"
    assert trusted(torus_library._library(torus_library.cache()))
