"""The producer: sends records and waits until the broker has confirmed each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from spoor.broker.clients import kafka_errors, timeouts
from spoor.broker.settings import KafkaSettings

_DELIVERY_SECONDS = 60.0  # per record, including the client's retries


class Record(NamedTuple):
    topic: str
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()


class Producer:
    """`options`: for kafka-python's producer. Every method raises InfrastructureError (`kafka_errors`)."""

    def __init__(self, kafka: KafkaSettings, **options: Any) -> None:
        from kafka import KafkaProducer

        self._kafka = kafka
        self._delivery_seconds = max(_DELIVERY_SECONDS, 2 * kafka.request_timeout_seconds)
        self.confirmed = 0  # records, since the start
        limits = timeouts(kafka)
        limits["max_block_ms"] = limits["request_timeout_ms"]
        limits["delivery_timeout_ms"] = int(self._delivery_seconds * 1000)
        all_options: dict[str, Any] = kafka.client_options() | limits | {"allow_auto_create_topics": False} | options
        with kafka_errors(kafka):
            self._client: Any = KafkaProducer(**all_options)

    def __enter__(self) -> Producer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._client.close(timeout=self._kafka.request_timeout_seconds)

    def deliver(self, records: Iterable[Record]) -> None:
        """Returns when every record is confirmed."""
        with kafka_errors(self._kafka):
            # Not flush(): it reports a batch as failed when the client splits it for its size.
            for future in [self._send(record) for record in records]:
                self._confirm(future)

    def offer(self, records: Iterable[Record]) -> list[bool]:
        """Like `deliver`, but a record that is too large for the client or its topic is no error. Returns for each
        record whether it is confirmed."""
        from kafka.errors import MessageSizeTooLargeError

        def sent(record: Record) -> Any:
            try:
                return self._send(record)
            except MessageSizeTooLargeError:
                return None

        with kafka_errors(self._kafka):
            return [self._fits(future) for future in [sent(record) for record in records]]

    def _send(self, record: Record) -> Any:
        return self._client.send(record.topic, key=record.key, value=record.value, headers=list(record.headers))

    def _confirm(self, future: Any) -> None:
        future.get(timeout=self._delivery_seconds)
        self.confirmed += 1

    def _fits(self, future: Any) -> bool:
        from kafka.errors import MessageSizeTooLargeError, RecordListTooLargeError

        if future is None:
            return False
        try:
            self._confirm(future)
        except (MessageSizeTooLargeError, RecordListTooLargeError):
            return False
        return True
