"""The C++ face: built once, remembered where it fails, and Python in its place."""

from __future__ import annotations

import pytest
import torch

from largebatch._errors import UserError
from largebatch._ops import torus_library
from largebatch.distributed import torus_face
from largebatch.distributed.topology import Topology
from largebatch.distributed.torus import Torus


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch, tmp_path):
    """A machine without a C++ compiler, and with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("PATH", "")
    torus_library.load.cache_clear()
    torus_face._say_once.cache_clear()
    yield
    torus_library.load.cache_clear()
    torus_face._say_once.cache_clear()


def test_without_a_compiler_python_serves_and_says_so_once(recwarn):
    assert torus_library.state() == "not yet"
    topology = Topology.from_hosts("aabb")
    for _ in range(2):
        made = torus_face.make_torus(topology, 0, None, None, torch.device("cpu"))  # type: ignore[arg-type]
        assert type(made) is Torus
    said = [str(warning.message) for warning in recwarn if "in Python" in str(warning.message)]
    assert len(said) == 1 and "which is slower" in said[0]


def test_a_failure_is_remembered_until_it_is_tried_again(monkeypatch):
    reason = torus_library.build()
    assert reason and torus_library.state() == reason
    monkeypatch.setattr(torus_library, "_compile", lambda folder: pytest.fail("compiled again"))
    assert torus_library.build() == reason
    with pytest.raises(BaseException, match="compiled again"):
        torus_library.rebuild()


def test_the_compiled_face_can_be_demanded(monkeypatch):
    monkeypatch.setenv("LARGEBATCH_OPS", "compiled")
    with pytest.raises(UserError, match="LARGEBATCH_OPS=compiled, but the torus schedule is not"):
        torus_library.load()


def test_the_python_face_can_be_forced(monkeypatch):
    monkeypatch.setenv("LARGEBATCH_OPS", "reference")
    assert torus_library.load() == (None, "LARGEBATCH_OPS=reference")
    assert torus_library.state() == "not yet"  # nothing was built


def test_the_cache_is_of_these_sources_and_one_torch(monkeypatch, tmp_path):
    first = torus_library.cache()
    monkeypatch.setattr(torch, "__version__", "9.9")
    second = torus_library.cache()
    (tmp_path / "comm").mkdir()
    (tmp_path / "comm" / "torus.cpp").write_text("// another\n")
    monkeypatch.setattr(torus_library, "SOURCES", (tmp_path,))
    third = torus_library.cache()
    (tmp_path / "comm" / "exchange.h").write_text("// a header\n")
    assert len({first, second, third, torus_library.cache()}) == 4
