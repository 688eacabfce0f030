"""The worker's one HTTP port, for Prometheus and for whoever watches over the process.

    /metrics    what streaming/status/metrics.py counts
    /healthz    200 while the worker is alive, else 503 and a line per problem
    /readyz     200 while it does its work, else 503 and a line per problem

200 says `ok`, or `paused` where `spoor stream pause` has told the worker to take no events.

Nothing is read from a request but its path: bodies and parameters are ignored. A client that says nothing for
`_SILENCE_SECONDS` is dropped, as is one that has not got its answer after `_REQUEST_SECONDS`, however slowly it goes
on; while `_MOST_CLIENTS` are there, others are turned away.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from spoor.streaming.status.health import Health

_SILENCE_SECONDS = 10.0
_REQUEST_SECONDS = 30.0
_MOST_CLIENTS = 32
_TEXT = ("Content-Type", "text/plain; charset=utf-8")


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True  # an open connection must not keep a stopped worker alive

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._free = threading.BoundedSemaphore(_MOST_CLIENTS)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        deadline = threading.Timer(_REQUEST_SECONDS, _hang_up, [request])
        deadline.daemon = True
        deadline.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            deadline.cancel()
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, or was sent away, is no trouble of the worker's."""


class _Server6(_Server):
    address_family = socket.AF_INET6


def _hang_up(request: socket.socket) -> None:
    with suppress(OSError):  # it is closed already
        request.shutdown(socket.SHUT_RDWR)


class _Handler(WSGIRequestHandler):
    timeout = _SILENCE_SECONDS

    def log_message(self, format: str, *args: Any) -> None:
        """Probes come every few seconds: no line for each."""


def serve(registry: CollectorRegistry, health: Health, *, host: str, port: int) -> Callable[[], None]:
    """Serves from a thread of its own until the returned function is called. Raises OSError for an address that
    cannot be bound."""
    kind = _Server6 if ":" in host else _Server
    server = make_server(host, port, application(registry, health), kind, handler_class=_Handler)
    threading.Thread(target=server.serve_forever, name="status", daemon=True).start()

    def stop() -> None:
        server.shutdown()
        server.server_close()

    return stop


def application(registry: CollectorRegistry, health: Health) -> Callable[..., Iterable[bytes]]:
    """The WSGI application of the three pages."""
    metrics = make_wsgi_app(registry)
    probes = {"/healthz": health.not_alive, "/readyz": health.not_ready}

    def respond(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            start_response("405 Method Not Allowed", [_TEXT, ("Allow", "GET, HEAD")])
            return [b"GET only\n"]
        if path == "/metrics":
            return metrics(environ, start_response)
        if path not in probes:
            start_response("404 Not Found", [_TEXT])
            return [b"/metrics, /healthz or /readyz\n"]
        problems = probes[path]()
        fine = "paused" if health.paused else "ok"
        start_response("503 Service Unavailable" if problems else "200 OK", [_TEXT])
        return ["".join(f"{line}\n" for line in problems or [fine]).encode()]

    return respond
