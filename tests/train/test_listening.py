"""Who can reach a run of one host: nobody from another, and nobody here makes it run code.

Every port that the processes of a real run listen on is read from the kernel and attacked.
"""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist

from largebatch.processes.environment import free_port
from largebatch.processes.heartbeat import VERDICT

RUN = ["--schedule.length=10000ep", "--telemetry.hardware_every=0"]
ESCAPES = "\x1b]0;title\x07\x1b[2Jno fault\x9b31m"


class Payload:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (os.system, (f"touch {self.path}",))


def listening(process: psutil.Process) -> set[tuple[str, int]]:
    """Return where a process listens. Its other ports are its ends of connections to others."""
    return {
        (each.laddr.ip, each.laddr.port)
        for each in process.net_connections("inet")
        if each.status == psutil.CONN_LISTEN
    }


def ports(process: psutil.Process) -> set[tuple[str, int]]:
    """Return where a process and all that it started listen."""
    return set().union(*map(listening, (process, *process.children(recursive=True))))


ATTACK = """
import base64, sys
from datetime import timedelta
from torch.distributed import TCPStore
store = TCPStore("127.0.0.1", int(sys.argv[1]), is_master=False, timeout=timedelta(seconds=3))
payload = bytes.fromhex(sys.argv[2])
for key in store.list_keys():
    store.set(key, base64.b64encode(payload) if "rendezvous" in key else payload)
print("a store", flush=True)
"""


def attack_stores(ports: list[int], payload: bytes) -> int:
    """Overwrite every value by a pickle, plain or as torch's rendezvous has it.

    Returns:
        the number of ports that are a store's; to others it may never come to an end.
    """
    started = [
        subprocess.Popen(
            [sys.executable, "-c", ATTACK, str(port), payload.hex()],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        for port in ports
    ]  # fmt: skip
    stores = 0
    deadline = time.monotonic() + 15
    for process in started:
        try:
            output, _ = process.communicate(timeout=max(1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
        stores += "a store" in output
    return stores


def attack_socket(port: int, payload: bytes) -> None:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=3) as connection:
            connection.sendall(payload)
            connection.settimeout(1)
            connection.recv(64)
    except OSError:
        return


@pytest.mark.slow
def test_ranks_of_one_host_listen_to_nobody_else_and_run_nothing(
    begin: Callable, tmp_path: Path
) -> None:
    run = begin("run", *RUN, nproc=2)
    run.wait_for(lambda: run.steps() > 3, "steps")
    found = ports(psutil.Process(run.process.pid))
    assert len(found) >= 3  # the launcher's store, and gloo's of each rank
    assert all(ip_address(host).is_loopback for host, _ in found), found
    mark = tmp_path / "mark"
    payload = pickle.dumps(Payload(mark))
    pickle.loads(payload)
    assert mark.exists()  # it works
    mark.unlink()
    assert attack_stores([port for _, port in found], payload) == 1
    for _, port in found:
        attack_socket(port, payload)
    deadline = time.monotonic() + 5
    while run.process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not mark.exists()


@pytest.mark.slow
def test_a_verdict_of_a_stranger_prints_as_text(begin: Callable) -> None:
    run = begin("run", *RUN, nproc=2)
    run.wait_for(lambda: run.steps() > 3, "steps")
    ((_, port),) = listening(psutil.Process(run.process.pid))
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=10))
    beats = [key for key in store.list_keys() if key.endswith("largebatch/heartbeat/1")]
    assert len(beats) == 1
    store.set(beats[0].replace("largebatch/heartbeat/1", VERDICT), ESCAPES)
    output = run.end()
    assert run.process.returncode == 1
    assert "\\x1b]0;title\\x07\\x1b[2Jno fault\\x9b31m" in output
    assert not set(ESCAPES) & set(output) - set("]0;title[2Jno fault31m"), output


@pytest.mark.slow
@pytest.mark.parametrize("address", ["127.0.0.1", socket.gethostname()])
def test_ranks_started_by_hand_on_one_host(begin: Callable, address: str) -> None:
    """With LOCAL_WORLD_SIZE the name of the host does no harm: all ranks are on it."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": address, "MASTER_PORT": str(free_port())}
    runs = [
        begin("run", *RUN, RANK=str(rank), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2", **shared)
        for rank in range(2)
    ]
    runs[0].wait_for(lambda: runs[0].steps() > 3, "steps")
    found = set[tuple[str, int]]().union(*(ports(psutil.Process(r.process.pid)) for r in runs))
    assert len(found) >= 3
    assert all(ip_address(host).is_loopback for host, _ in found), found
