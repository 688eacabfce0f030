"""Checks whether a broker answers, before a client is made: a client retries a dead port for a long time."""

from __future__ import annotations

import socket
from dataclasses import replace

from spoor.base.errors import InfrastructureError, SpoorError
from spoor.broker.admin import Admin
from spoor.broker.embedded_broker import recorded
from spoor.broker.settings import KafkaSettings


def listens(server: str, timeout_seconds: float) -> bool:
    """Whether a server accepts connections at host:port."""
    host, _, port = server.strip().rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_seconds):
            return True
    except (OSError, ValueError, OverflowError):
        return False


def answers(kafka: KafkaSettings) -> bool:
    """Whether a broker of the cluster answers a metadata request, with at least one broker ready for work. Another
    project's broker at the embedded broker's port does not count."""
    # A plain connection first: at a port without a listener, Kafka's client logs a warning per attempt.
    if not any(listens(server, kafka.request_timeout_seconds) for server in kafka.address.split(",")):
        return False
    try:
        with Admin(kafka) as admin:
            return admin.ready()
    except SpoorError:
        return False


def require_broker(kafka: KafkaSettings) -> None:
    """Raises InfrastructureError if no broker answers (at once if no server listens), UsageError if another project's
    broker does."""
    kafka.check_own()
    if not answers(kafka):
        raise broker_down(kafka)


def broker_down(kafka: KafkaSettings) -> InfrastructureError:
    """The error of every command if Kafka does not answer."""
    port = recorded(kafka.folder).get("port", kafka.port) if kafka.embedded else kafka.port
    if port != kafka.port and answers(moved := replace(kafka, port=port)):
        return InfrastructureError(
            f"no Kafka broker answers at {kafka.address}; that of `{kafka.folder}` answers at {moved.address}",
            hint=f"set kafka.port = {port}, or move it: `spoor services down`, then `spoor services up`",
        )
    return InfrastructureError(f"no Kafka broker answers at {kafka.address}", hint=kafka.way_to_a_broker)
