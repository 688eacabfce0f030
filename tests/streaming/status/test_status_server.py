"""One port, three pages, on the loopback address unless told."""

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from spoor.streaming.settings import StreamSettings
from spoor.streaming.status import status_server
from spoor.streaming.status.health import Health
from spoor.streaming.status.metrics import StreamMetrics
from tests.conftest import free_port, wait_until


@pytest.fixture
def health() -> Health:
    return Health(30.0)


@pytest.fixture
def port(health: Health) -> Iterator[int]:
    port = free_port()
    stop = status_server.serve(StreamMetrics().registry, health, host="127.0.0.1", port=port)
    yield port
    stop()


def page(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_the_pages_answer_with_what_they_are_for(port: int, health: Health):
    assert "spoor_stream_records_total" in page(port, "/metrics")[1]
    assert page(port, "/healthz") == (200, "ok\n")
    assert page(port, "/readyz")[0] == 503
    health.assigned([0])
    health.answered("broker")
    health.answered("store")
    assert page(port, "/readyz") == (200, "ok\n")
    health.failed(RuntimeError())
    assert page(port, "/healthz") == (503, "the worker stops: RuntimeError\n")


@pytest.mark.parametrize("path", ["/", "/metrics/", "/../etc/passwd", "/healthz/x"])
def test_other_paths_are_not_found(port: int, path: str):
    assert page(port, path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nothing_can_be_sent(port: int, method: str):
    assert page(port, "/metrics", method)[0] == 405


def test_a_client_that_says_nothing_is_dropped_and_holds_up_nobody(port: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(status_server._Handler, "timeout", 0.2)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as silent:
        assert page(port, "/healthz")[0] == 200
        assert silent.recv(1) == b""  # the server closed it


def test_a_client_that_is_slow_without_end_is_dropped(port: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(status_server, "_REQUEST_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", port), timeout=0.05) as slow:

        def dropped() -> bool:
            try:
                slow.sendall(b"x")  # a request line that never ends, and no silence in between
                return slow.recv(1) == b""
            except TimeoutError:
                return False
            except OSError:
                return True

        wait_until(dropped, "the server has closed the connection")
    assert page(port, "/healthz")[0] == 200


def test_beyond_so_many_clients_others_are_turned_away_until_one_leaves(port: int):
    address = ("127.0.0.1", port)
    with ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection(address, timeout=10))
            for _ in range(status_server._MOST_CLIENTS)
        ]
        with socket.create_connection(address, timeout=10) as one_more:
            assert one_more.recv(1) == b""
        clients[0].close()

        def answers() -> bool:
            try:
                return page(port, "/healthz")[0] == 200
            except OSError:
                return False

        wait_until(answers, "there is room again")


def test_a_port_that_was_given_up_is_free(health: Health):
    port = free_port()
    for _ in range(2):
        status_server.serve(StreamMetrics().registry, health, host="127.0.0.1", port=port)()


def test_the_default_address_is_the_loopback():
    assert StreamSettings().metrics_host == "127.0.0.1"
