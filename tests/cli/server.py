"""A stand-in for the daemon: answers canned JSON on a UNIX socket."""

from __future__ import annotations

import http.server
import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, _Server)
        server.asked.append(self.path)
        status, body = server.answers.get(self.path, (404, json.dumps({"error": "no such thing"})))
        octets = body.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(octets)))
        self.end_headers()
        self.wfile.write(octets)

    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, _Server)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server.told.append(json.loads(body))
        self.do_GET()

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Keep the test's output clean."""


class _Server(socketserver.UnixStreamServer):
    answers: dict[str, tuple[int, str]]
    asked: list[str]
    told: list[object]
    """The values that were posted."""


@contextmanager
def daemon(
    path: Path, answers: dict[str, tuple[int, str]], told: list[object] | None = None
) -> Iterator[list[str]]:
    """Answer on ``path`` while the block runs; yields the list of paths that were asked for."""
    server = _Server(str(path), _Handler)
    server.answers, server.asked = answers, []
    server.told = told if told is not None else []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.asked
    finally:
        server.shutdown()
        thread.join(5)
        server.server_close()
        path.unlink()
