"""Several hosts on one machine: network namespaces joined by veth pairs and a bridge.

Each host's link is shaped in both directions by tbf. Everything lives in namespaces of our own, so
the machine's own network is not touched; they go when the ``with`` block ends, however it ends, and
those of a lab that was killed go when the next one starts. Needs root and iproute2.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

PREFIX = "lbnet"
NETWORK = "10.77.0"
# Bytes: the largest packet that TCP hands over whole, 64 KiB and the headers of its 46 segments.
# What is larger than a burst tbf cuts up itself, and thousands of retransmissions follow.
BURST = 72_000


class Lab:
    """``hosts`` namespaces named ``lbnet-PID-0`` and on, host i at 10.77.0.(i + 1).

    Args:
        hosts: how many.
        rate: of each host's link in Mbit/s, each way.
    """

    def __init__(self, hosts: int, rate: float) -> None:
        self.hosts = [f"{PREFIX}-{os.getpid()}-{index}" for index in range(hosts)]
        self.switch = f"{PREFIX}-{os.getpid()}-switch"
        self.rate = rate
        self.started: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Lab:
        if os.geteuid() != 0:
            sys.exit("netlab: needs root, to make network namespaces")
        for program in ("ip", "tc"):
            if shutil.which(program) is None:
                sys.exit(f"netlab: {program} is not on PATH: install iproute2")
        remove_leftovers()
        # A signal becomes an exception, so that the block below still ends.
        self._handlers = {s: signal.signal(s, _leave) for s in (signal.SIGTERM, signal.SIGHUP)}
        try:
            self._build()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _build(self) -> None:
        ip("netns", "add", self.switch)
        ip("-n", self.switch, "link", "add", "br0", "type", "bridge")
        ip("-n", self.switch, "link", "set", "br0", "up")
        for index, host in enumerate(self.hosts):
            port = f"port{index}"
            ip("netns", "add", host)
            ip("-n", host, "link", "set", "lo", "up")
            ip("-n", self.switch, "link", "add", port, "type", "veth", "peer", "name", "eth0",
               "netns", host)  # fmt: skip
            ip("-n", self.switch, "link", "set", port, "master", "br0", "up")
            ip("-n", host, "addr", "add", f"{NETWORK}.{index + 1}/24", "dev", "eth0")
            ip("-n", host, "link", "set", "eth0", "up")
            for namespace, device in ((host, "eth0"), (self.switch, port)):
                run("tc", "-n", namespace, "qdisc", "add", "dev", device, "root", "tbf",
                    "rate", f"{self.rate:g}mbit", "burst", str(BURST), "limit", "4mb")  # fmt: skip

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
        remove([*self.hosts, self.switch])
        for process in self.started:
            process.wait()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def address(self, host: int) -> str:
        """Return the address of a host."""
        return f"{NETWORK}.{host + 1}"

    def cut(self, host: int) -> None:
        """Unplug a host: its link goes down and bytes in flight are lost."""
        ip("-n", self.switch, "link", "set", f"port{host}", "down")

    def torchrun(
        self, ranks: int, script: Path, arguments: Sequence[str], port: int = 29500
    ) -> list[subprocess.Popen[str]]:
        """Start ``script`` as ``ranks`` ranks on every host by torchrun; return its processes."""
        processes = []
        for index, host in enumerate(self.hosts):
            command = ["ip", "netns", "exec", host, sys.executable, "-m", "torch.distributed.run"]
            command += [f"--nnodes={len(self.hosts)}", f"--node-rank={index}"]
            command += [f"--nproc-per-node={ranks}", f"--master-addr={self.address(0)}"]
            command += [f"--master-port={port}", f"--local-addr={self.address(index)}"]
            process = subprocess.Popen(
                [*command, str(script), *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env={**os.environ, "GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"},
            )
            processes.append(process)
            self.started.append(process)
        return processes


def run(*command: str) -> str:
    """Run a command; leave with its own words where it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"netlab: {' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def ip(*arguments: str) -> str:
    """Run iproute2's ip."""
    return run("ip", *arguments)


def remove(names: Iterable[str]) -> None:
    """End what runs in namespaces and remove them."""
    for name in names:
        pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
        for pid in pids.stdout.split():
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                continue
        subprocess.run(["ip", "netns", "del", name], capture_output=True)


def remove_leftovers() -> None:
    """Remove the namespaces of labs whose process is gone."""
    for line in ip("netns", "list").splitlines():
        match = re.match(rf"({PREFIX}-(\d+)-\w+)", line)
        if match and not Path("/proc", match[2]).exists():
            remove([match[1]])


def _leave(number: int, frame: object) -> None:
    sys.exit(128 + number)
