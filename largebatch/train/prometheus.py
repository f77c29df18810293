"""Serve the newest figures to Prometheus, over HTTP on the loopback interface.

The format is one line per figure, which the standard library can serve. prometheus_client would be
a dependency of every installation for an endpoint that is off by default, and its registry of
counters and histograms is not needed.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from largebatch._errors import UserError

_LABELS = ("split", "rank", "host", "gpu")
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


class PrometheusEndpoint:
    """Serves the last line of each split and rank at http://127.0.0.1:PORT/metrics.

    Every figure of metrics.jsonl is a gauge ``largebatch_NAME`` with the labels ``split`` and, for
    hardware, ``rank``, ``host`` and ``gpu``.

    Args:
        port: port to listen on; 0 takes a free one.

    Raises:
        UserError: the port is taken.
    """

    def __init__(self, port: int) -> None:
        self._lines: dict[str, Mapping[str, Any]] = {}
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = self.path == "/metrics"
                body = endpoint.text().encode() if found else b"see /metrics\n"
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: Any) -> None:
                """Scrapes are no news."""

        try:
            self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        except OSError as error:
            raise UserError(
                f"telemetry.prometheus_port={port}: {error.strerror}; choose another"
            ) from None
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="prometheus", daemon=True
        )
        self._thread.start()

    def write(self, values: Mapping[str, Any]) -> None:
        """Take the figures of a line of metrics."""
        self._lines[f"{values['split']} {values.get('rank', '')}"] = dict(values)

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def text(self) -> str:
        """Return all figures in Prometheus' text format, version 0.0.4."""
        figures: dict[str, list[str]] = {}
        for values in list(self._lines.values()):
            labels = ",".join(
                f'{name}="{str(values[name]).translate(_ESCAPES)}"'
                for name in _LABELS
                if name in values
            )
            for name, value in values.items():
                if name in _LABELS or not isinstance(value, (int, float)):
                    continue
                shown = repr(value) if math.isfinite(value) else "NaN"
                figures.setdefault(name, []).append(f"largebatch_{name}{{{labels}}} {shown}")
        return "".join(
            f"# TYPE largebatch_{name} gauge\n" + "\n".join(lines) + "\n"
            for name, lines in figures.items()
        )
