"""The endpoint: the text format, only on the loopback interface, and a port that is taken."""

from __future__ import annotations

import re
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from largebatch._errors import UserError
from largebatch.train.prometheus import PrometheusEndpoint

LINE = re.compile(r'^largebatch_([a-z_0-9]+)\{((?:[a-z]+="(?:[^"\\\n]|\\.)*",?)*)\} (\S+)$')


@pytest.fixture
def endpoint() -> Iterator[PrometheusEndpoint]:
    opened = PrometheusEndpoint(0)
    yield opened
    opened.close()


def scrape(endpoint: PrometheusEndpoint, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{endpoint.port}{path}", timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return answer.read().decode()


def test_the_newest_line_of_each_split_and_rank_is_served(endpoint: PrometheusEndpoint) -> None:
    assert scrape(endpoint) == ""
    for loss in (0.7, 0.5):
        endpoint.write({"split": "train", "samples": 128, "loss": loss, "order_hash": "ab"})
    endpoint.write({"split": "val", "samples": 128, "loss": float("nan")})
    for rank in (0, 1):
        endpoint.write({"split": "hardware", "rank": rank, "host": 'a"b\\c', "gpu": "GPU-1",
                        "gpu_power_watts": 300.5 + rank})  # fmt: skip
    found, typed = {}, []
    for line in scrape(endpoint).splitlines():
        if line.startswith("#"):
            typed.append(line.split()[2])
            continue
        match = LINE.match(line)
        assert match, line
        assert f"largebatch_{match[1]}" == typed[-1]
        found[match[1], match[2]] = match[3]
    assert found["loss", 'split="train"'] == "0.5"
    assert found["loss", 'split="val"'] == "NaN"
    labels = 'split="hardware",rank="1",host="a\\"b\\\\c",gpu="GPU-1"'
    assert found["gpu_power_watts", labels] == "301.5"
    assert len(typed) == len(set(typed)) == 3
    assert not any(name in ("order_hash", "rank") for name, _ in found)


def test_other_paths_and_other_interfaces_get_nothing(endpoint: PrometheusEndpoint) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        scrape(endpoint, "/")
    assert endpoint._server.server_address[0] == "127.0.0.1"


def test_a_taken_port_is_the_users_mistake() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(UserError, match=rf"telemetry.prometheus_port={port}: Address already"):
            PrometheusEndpoint(port)


def test_a_closed_endpoint_frees_its_port() -> None:
    first = PrometheusEndpoint(0)
    first.close()
    second = PrometheusEndpoint(first.port)
    assert second.port == first.port
    second.close()
