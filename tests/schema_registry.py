"""A schema registry over HTTP. Confluent's is a Java application that no package brings: this one answers as its
documentation says, or as a broken one would."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.conftest import free_port

SILENT = (0, b"")
DRIPPING = (1, b"")  # a byte of a header now and then, without an end


class RegistryServer(ThreadingHTTPServer):
    """`answers`: schema id → what is known of it, as the registry tells it."""

    daemon_threads = True

    def __init__(self, answers: Mapping[int, Mapping[str, Any]]) -> None:
        super().__init__(("127.0.0.1", free_port()), _Handler)
        self.answers = dict(answers)
        self.asked: Counter[str] = Counter()  # by path
        self.authorization: str | None = None  # of the last request
        self.broken: tuple[int, bytes] | None = None  # status and body that every request gets instead
        self.closed = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: RegistryServer

    def do_GET(self) -> None:
        known = self.server.answers.get(int(self.path.removeprefix("/schemas/ids/")))
        if known is None:
            self._answer(404, {"error_code": 40403, "message": "Schema not found"})
        else:
            self._answer(200, known)

    def do_POST(self) -> None:
        schema_id = max(self.server.answers, default=0) + 1
        self.server.answers[schema_id] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(200, {"id": schema_id})

    def _answer(self, status: int, content: Mapping[str, Any]) -> None:
        self.server.asked[self.path] += 1
        self.server.authorization = self.headers["Authorization"]
        status, body = self.server.broken or (status, json.dumps(content).encode())
        if (status, body) == SILENT:
            self.server.closed.wait(30)
            return
        if (status, body) == DRIPPING:
            self.send_response(200)
            self.flush_headers()
            while not self.server.closed.wait(0.1):
                self.wfile.write(b"X")
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


@contextmanager
def running_registry(answers: Mapping[int, Mapping[str, Any]]) -> Iterator[RegistryServer]:
    with RegistryServer(answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.closed.set()
            server.shutdown()
