"""A record that could not become an event, as it lies in the dead-letter topic.

Key: `topic/partition/offset` of the origin, so that one bad record redelivered ten times is one dead letter to every
reader that keeps the last record per key (and to compaction). Value: one JSON object; the original bytes in base64.
A record without a value closes its key: the dead letter was replayed.
"""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from activity.errors import DataError, EventError

REPLAY_HEADER = "spoor-replay-of"  # on a replayed record: the origin key of the first dead letter
ORIGIN_CHARACTERS = 300  # of `topic/partition/offset`: a topic's name has at most 249
ENVELOPE_BYTES = 4096  # of JSON around the original bytes, at most

# Every reason that a dead letter can have, so that their counters stand at 0 before the first of them.
REASONS = (
    "no-value",
    "too-large",
    "not-json",
    "not-avro",
    "unknown-schema",
    "schema-mismatch",
    "missing-field",
    "bad-type",
    "bad-text",
    "bad-length",
    "too-early",
    "in-the-future",
    "unknown-action",
    "unknown-surface",
    "decoder-error",
)


@dataclass(frozen=True)
class DeadLetter:
    topic: str  # origin
    partition: int  # origin
    offset: int  # origin
    append_time_ms: int  # when the broker appended the origin
    reason: str  # stable code, e.g. not-json, too-large, in-the-future
    field: str  # which part of the event was refused
    found: str
    expected: str
    error: str  # class of the exception
    key: bytes | None  # original key
    value: bytes | None  # original value
    replay_of: str | None = None  # origin key of the first dead letter, if this record was a replay of one

    @property
    def origin(self) -> str:
        """The dead letter's key."""
        return f"{self.topic}/{self.partition}/{self.offset}"


def refusal(error: Exception) -> dict[str, str]:
    """The reason fields of a dead letter, from what the decoder raised."""
    if isinstance(error, EventError):
        return {
            "reason": error.reason,
            "field": error.field,
            "found": error.found,
            "expected": error.expected,
            "error": type(error).__name__,
        }
    return {
        "reason": "decoder-error",
        "field": "value",
        "found": str(error)[:200],
        "expected": "an event",
        "error": type(error).__name__,
    }


def encode_dead_letter(letter: DeadLetter) -> tuple[bytes, bytes]:
    """(key, value) of the record in the dead-letter topic."""
    fields = asdict(letter) | {"key": _to_text(letter.key), "value": _to_text(letter.value)}
    return letter.origin.encode(), json.dumps(fields, separators=(",", ":")).encode()


def decode_dead_letter(value: bytes) -> DeadLetter:
    """The reverse of `encode_dead_letter`. Raises DataError on anything else."""
    try:
        found = json.loads(value)
        letter: dict[str, Any] = {field.name: found[field.name] for field in fields(DeadLetter)}
        letter["key"], letter["value"] = _to_bytes(letter["key"]), _to_bytes(letter["value"])
        return DeadLetter(**letter)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(
            f"a record of the dead-letter topic is not a dead letter: {error}",
            hint="check kafka.dead_letter_topic: only `spoor stream` and `spoor dlq replay` may write to it",
        ) from error


def _to_text(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode("ascii")


def _to_bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text, validate=True)
