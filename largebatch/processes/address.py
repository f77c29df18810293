"""Addresses and interfaces: the loopback for ranks of one host, one that others reach else."""

from __future__ import annotations

import ipaddress
import socket

from largebatch._errors import UserError

LOOPBACK = "127.0.0.1"
ELSEWHERE = "192.0.2.1"  # of the range that RFC 5737 keeps for texts: nobody is there


def is_loopback(address: str) -> bool:
    """Return whether ``address``, as it is written, is this host's to itself.

    A name is not looked up: a host's own may mean 127.0.1.1 to it and more to others.
    """
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def interfaces() -> dict[str, str]:
    """Return for each address of this host, IPv4 first, the name of its interface."""
    import psutil

    found = [
        (kind, each.address.partition("%")[0], name)
        for name, addresses in psutil.net_if_addrs().items()
        for each in addresses
        for kind in (socket.AF_INET, socket.AF_INET6)
        if each.family == kind
    ]
    return {address: name for _, address, name in sorted(found, key=lambda each: each[0])}


def loopback_interface() -> str | None:
    """Return the name of the loopback interface, as a rule ``lo``; None where it has no address."""
    return interfaces().get(LOOPBACK)


def own_address() -> str:
    """Return an address of this host that others reach: its name's, else that of its route.

    Raises:
        UserError: there is none, or none can be told to be one.
    """
    known = interfaces()
    for address in (*_named(), *_routed()):
        if address in known and not is_loopback(address):
            return address
    raise UserError(
        f"{socket.gethostname()} has no address that other hosts reach (its name is that of"
        " nobody or means itself, and it has no route): set MASTER_ADDR"
    )


def gloo_interface() -> str | None:
    """Return the interface that gloo is to be told of on several hosts; None: it finds its own.

    It takes the address of the host's name. Where that is the loopback, as in Debian's
    ``127.0.1.1 NAME``, or nobody's, the others would look for this host on themselves.
    """
    known = interfaces()
    named = _named()
    if named and all(address in known and not is_loopback(address) for address in named):
        return None
    return known[own_address()]


def _named() -> list[str]:
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return [str(entry[4][0]) for entry in found]


def _routed() -> list[str]:
    """Return the address from which this host would send to another; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((ELSEWHERE, 9))
        except OSError:
            return []
        return [str(probe.getsockname()[0])]
