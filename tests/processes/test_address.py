"""Addresses that other hosts reach, and the loopback for one."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest

from largebatch._errors import UserError
from largebatch.processes import address, group
from largebatch.processes.address import gloo_interface, is_loopback, own_address
from largebatch.processes.environment import World

CARDS = {"127.0.0.1": "lo", "10.0.0.5": "ib0", "192.168.1.5": "eth0", "::1": "lo", "fd00::5": "ib0"}


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function: make this host's name resolve so, and its route leave from there."""
    monkeypatch.setattr(address, "interfaces", lambda: CARDS)

    def make(named: list[str], route: str | None = "192.168.1.5") -> None:
        def getaddrinfo(*_: object, **__: object) -> list[Any]:
            if not named:
                raise socket.gaierror(-2, "Name or service not known")
            return [(socket.AF_INET, 1, 6, "", (each, 0)) for each in named]

        monkeypatch.setattr(address.socket, "getaddrinfo", getaddrinfo)
        monkeypatch.setattr(address, "_routed", lambda: [route] if route else [])

    return make


@pytest.mark.parametrize(
    ("named", "found"),
    [
        (["10.0.0.5"], "10.0.0.5"),
        (["127.0.1.1"], "192.168.1.5"),  # Debian's line for a host's own name
        (["127.0.0.1", "10.0.0.5"], "10.0.0.5"),
        (["10.9.9.9"], "192.168.1.5"),  # an old entry: an address of somebody else
        ([], "192.168.1.5"),  # a name that nobody knows
        (["::1"], "192.168.1.5"),
        (["fd00::5"], "fd00::5"),
    ],
)
def test_rank_0_announces_what_others_reach(host, named, found) -> None:
    host(named)
    assert own_address() == found


def test_without_any_it_says_so(host) -> None:
    host(["127.0.1.1"], None)
    with pytest.raises(UserError, match="set MASTER_ADDR"):
        own_address()


@pytest.mark.parametrize(
    ("named", "interface"),
    [(["10.0.0.5"], None), (["127.0.1.1"], "eth0"), ([], "eth0"), (["127.0.0.1"], "eth0")],
)
def test_gloo_is_told_where_the_name_misleads_it(host, named, interface, monkeypatch) -> None:
    """On several hosts; on one the loopback serves, whatever the name."""
    host(named)
    assert gloo_interface() == interface
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    group.choose_interface(World(0, 2, 0, 1, "srun", "host0"), "gloo")
    assert os.environ.get("GLOO_SOCKET_IFNAME") == interface
    assert "NCCL_SOCKET_IFNAME" not in os.environ


@pytest.mark.parametrize(
    "world", [World(0, 2, 0, 2, "srun", "host0"), World(0, 2, 0, 1, "torchrun", "localhost")]
)
def test_ranks_of_one_host_keep_to_its_loopback(host, world, monkeypatch) -> None:
    host(["10.0.0.5"])
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    group.choose_interface(world, "gloo")
    assert os.environ["GLOO_SOCKET_IFNAME"] == os.environ["NCCL_SOCKET_IFNAME"] == "lo"
    os.environ["GLOO_SOCKET_IFNAME"] = "eth0"
    group.choose_interface(world, "gloo")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth0"  # what the user says stands


@pytest.mark.parametrize(
    ("text", "loopback"),
    [("127.0.0.1", True), ("127.0.1.1", True), ("::1", True), ("localhost", True), ("", False),
     ("10.0.0.1", False), ("127.example.com", False), (socket.gethostname() + ".x", False)],
)  # fmt: skip
def test_loopback_as_it_is_written(text, loopback) -> None:
    assert is_loopback(text) is loopback


def test_this_host() -> None:
    """Of the machine the test runs on."""
    assert address.loopback_interface() == "lo"
    assert address.interfaces()["127.0.0.1"] == "lo"
