"""Identifies the Kafka at a local port: the cluster id shows whether it is a state folder's embedded broker.

Two projects without a configured port share the default one, and the events of one must not reach the other.
`KafkaSettings.client_options` runs this check before every client is made. So it must be quick and needs no client
library: two requests of Kafka's protocol, in versions that brokers from 1.0 on understand.
"""

from __future__ import annotations

import json
import socket
import struct
from contextlib import suppress
from pathlib import Path

from spoor.base.errors import InfrastructureError, UsageError
from spoor.base.numbers import number_text

PROCESS_FILE = "process.json"  # in the folder of the embedded broker
_METADATA, _METADATA_VERSION = 3, 4
_LOG_DIRS, _LOG_DIRS_VERSION = 35, 1
_MOST_BYTES = 1 << 20  # maximum of an answer
_PORTS = range(19_092, 29_092)  # searched for free ports


def own_cluster(folder: Path) -> str | None:
    """The cluster id of Kafka's data folder; None before the first start."""
    with suppress(OSError):
        for line in (folder / "data" / "meta.properties").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition("=")
            if key.strip() == "cluster.id":
                return value.strip()
    return None


def recorded(folder: Path) -> dict[str, int]:
    """The process recorded by `spoor services up`: `pid`, `port`, `controller_port`; empty if the record is damaged or
    missing."""
    try:
        record = json.loads((folder / PROCESS_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return {key: value for key, value in record.items() if type(value) is int} if isinstance(record, dict) else {}


def cluster_at(port: int, *, timeout_seconds: float) -> str | None:
    """The id of the cluster at this port of 127.0.0.1; None if no server answers in Kafka's protocol. Raises
    TimeoutError."""
    answer = _ask(port, _METADATA, _METADATA_VERSION, struct.pack(">i?", 0, False), timeout_seconds)
    try:
        reader = _Reader(answer)
        reader.integers(">i")  # throttle
        for _ in range(reader.integers(">i")):
            reader.integers(">i")
            reader.text()
            reader.integers(">i")
            reader.text()
        return reader.text()
    except (struct.error, UnicodeDecodeError):
        return None


def check_own_broker(folder: Path, port: int, *, timeout_seconds: float) -> None:
    """Raises UsageError if another broker than that of `folder` answers at the port, InfrastructureError if a server
    accepts connections but does not answer. A port without a server is not an error."""
    try:
        found = cluster_at(port, timeout_seconds=timeout_seconds)
    except TimeoutError:
        raise InfrastructureError(
            f"no Kafka broker answers at 127.0.0.1:{port} within {number_text(timeout_seconds)} s",
            hint="see `spoor services status`; a hung broker is ended by `spoor services down`",
        ) from None
    if found is None or found == (own := own_cluster(folder)):
        return
    raise UsageError(
        f"the Kafka at 127.0.0.1:{port} is not the broker of `{folder}`: {whose(port)}its cluster is {found}, expected "
        f"{own or 'none, as no broker was started here yet'}",
        hint=f'{other_ports()}. If that Kafka is meant, set kafka.bootstrap_servers = "127.0.0.1:{port}"',
    )


def whose(port: int) -> str:
    """For a message: the data folder of the Kafka at the port, if it reports one."""
    with suppress(TimeoutError, struct.error, UnicodeDecodeError):
        reader = _Reader(_ask(port, _LOG_DIRS, _LOG_DIRS_VERSION, struct.pack(">i", 0), 2.0))
        reader.integers(">i")  # throttle
        if reader.integers(">i"):
            reader.integers(">h")
            return f"its data lie in `{reader.text()}`, "
    return ""


def other_ports() -> str:
    """The hint for a port in use: two free ports, and where to set them."""
    first = next((port for port in _PORTS if is_free(port) and is_free(port + 1)), None)
    if first is None:
        return "set kafka.port and kafka.controller_port to free ports"
    return (
        f"set kafka.port = {first} and kafka.controller_port = {first + 1}, which are free, in the settings file (or "
        f"SPOOR_KAFKA__PORT={first} and SPOOR_KAFKA__CONTROLLER_PORT={first + 1}), then `spoor services up`; or stop "
        "the other broker"
    )


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            return True
        except (OSError, OverflowError):
            return False


def _ask(port: int, key: int, version: int, body: bytes, timeout_seconds: float) -> bytes:
    """The answer's body; empty if there is no answer. Raises TimeoutError."""
    client = b"spoor"
    request = struct.pack(">hhih", key, version, 1, len(client)) + client + body
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=timeout_seconds) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            file = connection.makefile("rb")
            size = int.from_bytes(file.read(4))
            return file.read(size)[4:] if size <= _MOST_BYTES else b""
    except TimeoutError:
        raise
    except (OSError, OverflowError):
        return b""


class _Reader:
    """Reads values of Kafka's types. Raises struct.error at the end of the data."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def integers(self, kind: str) -> int:
        value = struct.unpack_from(kind, self._data, self._at)[0]
        self._at += struct.calcsize(kind)
        return value

    def text(self) -> str | None:
        length = self.integers(">h")
        if length < 0:
            return None
        self._at += length
        if self._at > len(self._data):
            raise struct.error("cut off")
        return self._data[self._at - length : self._at].decode()
