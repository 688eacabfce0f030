"""The documented formats as a stranger would read them: docs/data-formats.md, and nothing of the product.

The judge (tests/faults/judge.py) reads what Spoor has written with these few functions. They are slow, and they trust
no field that they can check.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import xxhash

ITEM_SEED, NAME_SEED, USER_SEED = 0x53504F4F5201, 0x53504F4F5202, 0x53504F4F5203
T = TypeVar("T")
VERSIONS = (1, 2)  # of packed histories, and of the hashes in them
Key = tuple[int, int, int, int]  # time, item, action, surface: what identifies and orders an event


class History(NamedTuple):
    version: int
    events: list[Key]  # as they lie there
    forgotten_through: int | None


def hash_item(item: str) -> int:
    return xxhash.xxh3_64_intdigest(item.encode(), seed=ITEM_SEED)


def hash_name(name: str, version: int = VERSIONS[-1]) -> int:
    digest = xxhash.xxh3_64_intdigest(name.encode(), seed=NAME_SEED)
    first = digest & 0xFFFF  # all that version 1 has
    return first if version == 1 else first << 48 | digest >> 16


def bucket_of(user: str, buckets: int) -> int:
    return xxhash.xxh3_64_intdigest(user.encode(), seed=USER_SEED) % buckets


class _Columns:
    """Unsigned little-endian numbers, column after column."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int, width: int) -> list[int]:
        end = self._at + count * width
        if end > len(self._data):
            raise ValueError(f"{len(self._data)} bytes, {end} are needed")
        found = [int.from_bytes(self._data[at : at + width], "little") for at in range(self._at, end, width)]
        self._at = end
        return found

    def end(self) -> None:
        if self._at != len(self._data):
            raise ValueError(f"{len(self._data) - self._at} bytes are left over")


def unpack_history(data: bytes) -> History:
    """Raises ValueError for bytes that are not as documented."""
    if len(data) < 24:
        raise ValueError(f"{len(data)} bytes")
    magic, version, header, hashes, width, events, pairs, body_crc, more_crc = struct.unpack_from("<3sBHBBIIII", data)
    if magic != b"SPH" or version not in VERSIONS or hashes != version or not 24 <= header <= len(data):
        raise ValueError(f"not the header of a packed history: {data[:24].hex()}")
    more, body = data[24:header], data[header:]
    if zlib.crc32(body) != body_crc or zlib.crc32(more) != more_crc:
        raise ValueError("a checksum does not match")
    if width != _index_width(pairs):
        raise ValueError(f"codes of {width} bytes for {pairs} pairs of names")
    columns = _Columns(body)
    if version == 1:
        halves = columns.take(2 * pairs, 2)
    else:
        (count,) = columns.take(1, 4)
        names = columns.take(count, 8)
        halves = [_entry(names, index) for index in columns.take(2 * pairs, _index_width(count))]
    times, items = columns.take(events, 6), columns.take(events, 8)
    codes = columns.take(events, width)
    columns.end()
    both = list(zip(halves[::2], halves[1::2], strict=True))
    found = [(t - (1 << 47), i, *_entry(both, code)) for t, i, code in zip(times, items, codes, strict=True)]
    return History(version, found, struct.unpack_from("<q", more)[0] if more else None)


def _index_width(entries: int) -> int:
    return 1 if entries <= 1 << 8 else 2 if entries <= 1 << 16 else 4


def _entry(table: Sequence[T], index: int) -> T:
    if index >= len(table):
        raise ValueError(f"entry {index} of {len(table)}")
    return table[index]


def read_embedding(value: bytes) -> dict[str, Any]:
    """A record of an embedding topic."""
    if value.startswith(b"\xff\xff\xff\xff"):
        (row,) = pa.ipc.open_stream(value).read_all().to_pylist()
        return row
    row = json.loads(value)
    return row | {"embedding": np.array(row["embedding"], np.float32).tolist()}


class DeadLetter(NamedTuple):
    """`size` and `sha256` of key and value, one after the other: all that a reference says of them."""

    origin: str
    key: bytes | None
    value: bytes | None
    size: int
    sha256: str
    reference: bool


def read_dead_letter(data: bytes) -> DeadLetter:
    letter = json.loads(data)
    origin = f"{letter['topic']}/{letter['partition']}/{letter['offset']}"
    if "sha256" in letter:
        return DeadLetter(origin, None, None, letter["size"], letter["sha256"], True)
    return dead_letter(origin, *(_original(letter, name) for name in ("key", "value")))


def dead_letter(origin: str, key: bytes | None, value: bytes | None) -> DeadLetter:
    """What the letter of this record has to be."""
    both = (key or b"") + (value or b"")
    return DeadLetter(origin, key, value, len(both), hashlib.sha256(both).hexdigest(), False)


def _original(letter: dict[str, Any], name: str) -> bytes | None:
    if letter[name] is None:
        return None
    data = base64.b64decode(letter[name], validate=True)
    return zlib.decompress(data) if letter.get("compression") == "zlib" else data


def event_json(user: str, item: str, action: str, surface: str, timestamp: int) -> bytes:
    """A record of the topic `activity`."""
    fields = {"user_id": user, "item_id": item, "action": action, "surface": surface, "timestamp": timestamp}
    return json.dumps(fields).encode()
