"""Shared by all kafka-python clients: timeouts, and the translation of their errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from spoor.base.errors import InfrastructureError
from spoor.base.numbers import number_text
from spoor.broker.compression import missing_codec
from spoor.broker.settings import KafkaSettings


def timeouts(kafka: KafkaSettings) -> dict[str, Any]:
    """Keyword arguments for every client."""
    timeout_ms = int(kafka.request_timeout_seconds * 1000)
    return {"bootstrap_timeout_ms": timeout_ms, "request_timeout_ms": timeout_ms}


@contextmanager
def kafka_errors(kafka: KafkaSettings) -> Iterator[None]:
    """Turns errors of kafka-python clients into InfrastructureErrors."""
    from kafka.errors import KafkaConnectionError, KafkaError, KafkaTimeoutError

    try:
        yield
    except (KafkaTimeoutError, KafkaConnectionError, OSError) as error:  # TimeoutError is an OSError
        raise missing_codec(error) or no_broker(kafka, error) from error
    except KafkaError as error:
        raise missing_codec(error) or InfrastructureError(
            f"Kafka at {kafka.address} refused: {error}", hint="check the rights of this user on the topics"
        ) from error


def no_broker(kafka: KafkaSettings, error: BaseException) -> InfrastructureError:
    return InfrastructureError(
        f"no Kafka broker answers at {kafka.address}: it is down or does not answer within "
        f"{number_text(kafka.request_timeout_seconds)} s ({type(error).__name__})",
        hint=kafka.way_to_a_broker,
    )
