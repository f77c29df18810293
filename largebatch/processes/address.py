"""Network addresses and interfaces: loopback for ranks of one host, else a reachable one."""

from __future__ import annotations

import ipaddress
import socket

from largebatch._errors import UserError

LOOPBACK = "127.0.0.1"
ELSEWHERE = "192.0.2.1"  # of the range that RFC 5737 keeps for texts: nobody is there


def is_loopback(address: str) -> bool:
    """Return whether ``address``, as written, is a loopback address.

    Names are not looked up: a host's own name may mean 127.0.1.1 to itself and another address to
    other hosts.
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
    """Return the name of the loopback interface, usually ``lo``; None if it has no address."""
    return interfaces().get(LOOPBACK)


def own_address() -> str:
    """Return an address of this host that others reach: its name's, else its route's.

    Raises:
        UserError: no such address exists, or none can be identified.
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
    """Return the interface for gloo on several hosts; None: gloo finds the interface itself.

    gloo takes the address of the host's name. If this is a loopback address, as in Debian's
    ``127.0.1.1 NAME``, or belongs to no interface, other hosts could not reach this one.
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
