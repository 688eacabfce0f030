"""The packed history: one user's events as bytes, as they are stored in Feast.

Little-endian, columns one after the other (n events, k distinct (action, surface) pairs):

    header   24 bytes   magic "SPH", codec version u8, header length u16, hash version u8, pair width u8,
                        events n u32, pairs k u32, CRC-32 of everything after the header u32,
                        CRC-32 of the header after these 24 bytes u32 (0 where there is nothing)
              8 bytes   forgotten through i64, ms since 1970: only of a user who was forgotten
    pairs    4·k        action u16, surface u16
    times    6·n        ms since 1970 + 2^47, unsigned
    items    8·n        item hash u64
    codes    1·n or 2·n index into pairs (1 byte up to 256 pairs)

So an event takes 15 bytes, 16 where more than 256 pairs are in use. Later versions may lengthen the header: readers
skip what lies between the fields they know and its stated length. Readers from before the marker skip it that way.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np

from activity.errors import DataError
from activity.hashing import HASH_VERSION
from activity.history import EVENT_DTYPE, NEVER, Histories, Int64s, Values

CODEC_VERSION = 1
_MAGIC = b"SPH"
_HEADER = struct.Struct("<3sBHBBIIII")
_MARKER = struct.Struct("<q")
_TIME_BYTES = 6
_TIME_ORIGIN = 1 << 47
_PAIR = np.dtype([("action", "<u2"), ("surface", "<u2")])


def pack(histories: Histories, forgotten_through: Int64s | None = None) -> list[bytes]:
    """One byte string per user. `forgotten_through` int64[U] in ms: through when each user was forgotten, NEVER for
    the others; by default nobody was. Raises DataError for a time beyond ±2^47 ms (the years -2490 to 6429)."""
    times = histories.values["timestamp"]
    if len(times) and not (times.min() >= -_TIME_ORIGIN and times.max() < _TIME_ORIGIN):
        raise DataError("a history holds a time beyond ±2^47 ms, which its packed form cannot carry")
    through = [NEVER] * histories.count if forgotten_through is None else forgotten_through.tolist()
    return [_pack_one(histories[user], through[user]) for user in range(histories.count)]


def unpack(packed: Sequence[bytes]) -> Histories:
    """The histories in the given order. Raises DataError if any is damaged or of another version."""
    return Histories.of([_unpack_one(data) for data in packed])


def holds_events(packed: bytes) -> bool:
    """Whether there is any event, by the header alone: a forgotten user's history may be a marker and nothing more.
    Raises DataError where there is no header."""
    if len(packed) < _HEADER.size:
        raise _damaged(f"{len(packed)} bytes, shorter than its header")
    return _HEADER.unpack_from(packed)[5] > 0


def read_forgotten_through(packed: Sequence[bytes]) -> Int64s:
    """int64[U] in ms: through when each user was forgotten, NEVER for who was not. Raises DataError as `unpack`."""
    return np.fromiter((_marker(data) for data in packed), np.int64, count=len(packed))


def _pack_one(events: Values, forgotten_through: int) -> bytes:
    count = len(events)
    both = events["action"].astype(np.uint32) << 16 | events["surface"]
    distinct, codes = np.unique(both, return_inverse=True)
    pairs = np.empty(len(distinct), _PAIR)
    pairs["action"], pairs["surface"] = distinct >> 16, distinct & 0xFFFF
    width = 1 if len(pairs) <= 256 else 2
    times = (events["timestamp"] + _TIME_ORIGIN).astype("<u8")
    body = b"".join(
        (
            pairs.tobytes(),
            times.view(np.uint8).reshape(count, 8)[:, :_TIME_BYTES].tobytes(),
            events["item"].astype("<u8").tobytes(),
            codes.astype(f"<u{width}").tobytes(),
        )
    )
    marker = b"" if forgotten_through == NEVER else _MARKER.pack(forgotten_through)
    length, checks = _HEADER.size + len(marker), (zlib.crc32(body), zlib.crc32(marker))
    header = _HEADER.pack(_MAGIC, CODEC_VERSION, length, HASH_VERSION, width, count, len(pairs), *checks)
    return header + marker + body


def _marker(data: bytes) -> int:
    if len(data) < _HEADER.size:
        raise _damaged(f"{len(data)} bytes, shorter than its header")
    _, _, header_length, *_, crc = _HEADER.unpack_from(data)
    if header_length < _HEADER.size + _MARKER.size:
        return NEVER
    if len(data) < header_length or zlib.crc32(memoryview(data)[_HEADER.size : header_length]) != crc:
        raise _damaged("the checksum of its header does not match")
    return _MARKER.unpack_from(data, _HEADER.size)[0]


def _unpack_one(data: bytes) -> Values:
    if len(data) < _HEADER.size:
        raise _damaged(f"{len(data)} bytes, shorter than its header")
    magic, version, header_length, hash_version, width, count, pair_count, crc, _ = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise _damaged(f"it starts with {data[:3]!r}, not {_MAGIC!r}")
    if version != CODEC_VERSION or hash_version != HASH_VERSION:
        raise DataError(
            f"packed history of codec version {version}, hash version {hash_version}; "
            f"this program reads {CODEC_VERSION} and {HASH_VERSION}",
            hint="read it with the Spoor that wrote it, or rebuild it with `spoor backfill`",
        )
    body_length = _PAIR.itemsize * pair_count + (_TIME_BYTES + 8 + width) * count
    if width not in (1, 2) or header_length < _HEADER.size or len(data) != header_length + body_length:
        raise _damaged(f"{len(data)} bytes, but its header promises {header_length + body_length}")
    if zlib.crc32(memoryview(data)[header_length:]) != crc:
        raise _damaged("its checksum does not match")
    _marker(data)  # raises if it is damaged
    at = header_length
    pairs = np.frombuffer(data, _PAIR, pair_count, at)
    at += pairs.nbytes
    times = np.zeros((count, 8), np.uint8)
    times[:, :_TIME_BYTES] = np.frombuffer(data, np.uint8, count * _TIME_BYTES, at).reshape(count, _TIME_BYTES)
    at += count * _TIME_BYTES
    items = np.frombuffer(data, "<u8", count, at)
    codes = np.frombuffer(data, f"<u{width}", count, at + items.nbytes)
    if count and int(codes.max()) >= pair_count:
        raise _damaged("an event refers to a pair that is not there")
    events = np.empty(count, EVENT_DTYPE)
    events["timestamp"] = times.view("<u8")[:, 0].astype(np.int64) - _TIME_ORIGIN
    events["item"] = items
    events["action"], events["surface"] = pairs["action"][codes], pairs["surface"][codes]
    return events


def _damaged(what: str) -> DataError:
    return DataError(f"damaged packed history: {what}", hint="`spoor verify --repair` rebuilds histories from the lake")
