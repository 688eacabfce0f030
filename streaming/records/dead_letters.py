"""A record that could not become an event, as it lies in the dead-letter topic.

Key: `topic/partition/offset` of the origin, so that one bad record redelivered ten times is one dead letter to every
reader that keeps the last record per key (and to compaction). Value: one JSON object. The first form that fits:

    plain        the original key and value in base64
    zlib         the same, compressed before base64; `"compression": "zlib"`
    reference    neither: `size` and `sha256` of key and value, which stay where `topic/partition/offset` says

A record without a value closes its key: the dead letter was replayed.
docs/decisions/0019-dead-letters-that-do-not-fit.md says why there are three.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from spoor.base.errors import DataError, EventError

REPLAY_HEADER = "spoor-replay-of"  # on a replayed record: the origin key of the first dead letter
ORIGIN_CHARACTERS = 300  # of `topic/partition/offset`: a topic's name has at most 249
Form = Literal["plain", "zlib", "reference"]
FORMS: tuple[Form, ...] = ("plain", "zlib", "reference")  # the fullest first
_RECORD_BYTES = 128  # of a batch and a record around key and value
_TEXT_CHARACTERS = 300  # of a reference's texts

# Every reason that a dead letter can have, so that their counters stand at 0 before the first of them.
REASONS = (
    "no-value",
    "too-large",
    "not-json",
    "not-avro",
    "unknown-schema",
    "schema-mismatch",
    "missing-field",
    "repeated-field",
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
    size: int | None = None  # of a reference: bytes of key and value
    sha256: str | None = None  # of a reference: digest of the key followed by the value

    @property
    def is_reference(self) -> bool:
        """Whether key and value lie at the origin alone; once they were looked up there, they are here too."""
        return self.sha256 is not None

    @property
    def is_gone(self) -> bool:
        """Of a reference that was looked up: the origin no longer holds the record."""
        return self.is_reference and self.key is None and self.value is None

    @property
    def origin(self) -> str:
        """The dead letter's key."""
        return f"{self.topic}/{self.partition}/{self.offset}"


def refusal(error: Exception) -> dict[str, Any]:
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


def encode_dead_letter(letter: DeadLetter, form: Form = "plain") -> tuple[bytes, bytes]:
    """(key, value) of the record in the dead-letter topic."""
    if form == "reference" and not letter.is_reference:
        letter = as_reference(letter)
    shown = asdict(letter)
    if letter.is_reference:
        shown["key"] = shown["value"] = None
    else:
        del shown["size"], shown["sha256"]
        pack = zlib.compress if form == "zlib" else bytes
        shown["key"], shown["value"] = (
            None if data is None else base64.b64encode(pack(data)).decode("ascii")
            for data in (letter.key, letter.value)
        )
        if form == "zlib":
            shown["compression"] = "zlib"
    return letter.origin.encode(), json.dumps(shown, separators=(",", ":")).encode()


def fitting_records(letter: DeadLetter, most_bytes: int) -> Iterator[tuple[Form, bytes, bytes]]:
    """(form, key, value) of the dead letter in each form that a topic with max.message.bytes `most_bytes` takes, the
    fullest first. The reference always comes, last."""
    key = letter.origin.encode()
    whole = len(letter.key or b"") + len(letter.value or b"")
    for form in FORMS:
        if form == "plain" and whole * 4 // 3 > most_bytes:
            continue  # spares the work
        _, value = encode_dead_letter(letter, form)
        if form == "reference" or len(key) + len(value) + _RECORD_BYTES <= most_bytes:
            yield form, key, value


def as_reference(letter: DeadLetter) -> DeadLetter:
    """The letter with size and digest in place of key and value."""
    return replace(
        letter,
        key=None,
        value=None,
        found=letter.found[:_TEXT_CHARACTERS],
        expected=letter.expected[:_TEXT_CHARACTERS],
        size=len(letter.key or b"") + len(letter.value or b""),
        sha256=digest(letter.key, letter.value),
    )


def digest(key: bytes | None, value: bytes | None) -> str:
    """SHA-256 of a record's key followed by its value, in hexadecimal."""
    found = hashlib.sha256(key or b"")
    found.update(value or b"")
    return found.hexdigest()


def decode_dead_letter(value: bytes) -> DeadLetter:
    """The reverse of `encode_dead_letter`, in whatever form. Raises DataError on anything else."""
    try:
        found = json.loads(value)
        letter: dict[str, Any] = {name: found[name] for name in _FIELDS} | {name: found.get(name) for name in _LATER}
        unpack = {"zlib": zlib.decompress, None: bytes}[found.get("compression")]
        for name in ("key", "value"):
            text = letter[name]
            letter[name] = None if text is None else unpack(base64.b64decode(text, validate=True))
        return DeadLetter(**letter)
    except (ValueError, TypeError, KeyError, RecursionError, zlib.error) as error:
        raise DataError(
            f"a record of the dead-letter topic is not a dead letter: {error}",
            hint="check kafka.dead_letter_topic: only `spoor stream` and `spoor dlq replay` may write to it",
        ) from error


_LATER = ("size", "sha256")  # which a letter of an earlier version lacks
_FIELDS = tuple(field.name for field in fields(DeadLetter) if field.name not in _LATER)
