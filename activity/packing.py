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
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from activity.errors import DataError
from activity.hashing import HASH_VERSION
from activity.history import EVENT_DTYPE, NEVER, Histories, Int64s, offsets_of

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
    pairs, pair_offsets, codes = _pair_codes(histories)
    # Columns of all users as bytes, which each user's slices are cut from: NumPy is called once, not once per user.
    pair_bytes, item_bytes = pairs.tobytes(), histories.values["item"].astype("<u8").tobytes()
    shifted = (times + _TIME_ORIGIN).astype("<u8").view(np.uint8).reshape(-1, 8)
    time_bytes = shifted[:, :_TIME_BYTES].tobytes()
    code_bytes = {width: codes.astype(f"<u{width}").tobytes() for width in (1, 2)}
    bounds, pair_bounds = histories.offsets.tolist(), pair_offsets.tolist()
    packed = []
    for user in range(histories.count):
        start, end, first, last = *bounds[user : user + 2], *pair_bounds[user : user + 2]
        width = 1 if last - first <= 256 else 2
        body = b"".join(
            (
                pair_bytes[_PAIR.itemsize * first : _PAIR.itemsize * last],
                time_bytes[_TIME_BYTES * start : _TIME_BYTES * end],
                item_bytes[8 * start : 8 * end],
                code_bytes[width][width * start : width * end],
            )
        )
        packed.append(_headed(body, through[user], width=width, events=end - start, pairs=last - first))
    return packed


def unpack(packed: Sequence[bytes]) -> Histories:
    """The histories in the given order. Raises DataError if any is damaged or of another version."""
    bodies = [_body(data) for data in packed]
    lengths = np.array([body.events for body in bodies], np.int64)
    pair_counts = np.array([body.pairs for body in bodies], np.int64)
    offsets, pair_offsets = offsets_of(lengths), offsets_of(pair_counts)
    pairs = np.frombuffer(b"".join(body.pair_bytes for body in bodies), _PAIR)
    times = np.zeros((offsets[-1], 8), np.uint8)
    time_bytes = np.frombuffer(b"".join(body.time_bytes for body in bodies), np.uint8)
    times[:, :_TIME_BYTES] = time_bytes.reshape(-1, _TIME_BYTES)
    codes = np.empty(offsets[-1], np.int64)
    wide = np.repeat(np.array([body.width == 2 for body in bodies], bool), lengths)
    for width, chosen in ((1, ~wide), (2, wide)):
        codes[chosen] = np.frombuffer(b"".join(body.code_bytes for body in bodies if body.width == width), f"<u{width}")
    if (codes >= np.repeat(pair_counts, lengths)).any():
        raise _damaged("an event refers to a pair that is not there")
    chosen_pairs = pairs[codes + np.repeat(pair_offsets[:-1], lengths)]
    events = np.empty(offsets[-1], EVENT_DTYPE)
    events["timestamp"] = times.view("<u8")[:, 0].astype(np.int64) - _TIME_ORIGIN
    events["item"] = np.frombuffer(b"".join(body.item_bytes for body in bodies), "<u8")
    events["action"], events["surface"] = chosen_pairs["action"], chosen_pairs["surface"]
    return Histories(events, offsets)


def holds_events(packed: bytes) -> bool:
    """Whether there is any event, by the header alone: a forgotten user's history may be a marker and nothing more.
    Raises DataError where there is no header."""
    if len(packed) < _HEADER.size:
        raise _damaged(f"{len(packed)} bytes, shorter than its header")
    return _HEADER.unpack_from(packed)[5] > 0


def read_forgotten_through(packed: Sequence[bytes]) -> Int64s:
    """int64[U] in ms: through when each user was forgotten, NEVER for who was not. Raises DataError as `unpack`."""
    return np.fromiter((_marker(data) for data in packed), np.int64, count=len(packed))


def _pair_codes(histories: Histories) -> tuple[npt.NDArray[np.void], Int64s, Int64s]:
    """Each user's distinct pairs in ascending order, _PAIR[P]; where each user's begin and end, int64[U + 1]; and of
    each event the place of its pair among its user's, int64[N]."""
    values = histories.values
    users = np.repeat(np.arange(histories.count, dtype=np.uint64), histories.lengths)
    keys = users << np.uint64(32) | values["action"].astype(np.uint64) << np.uint64(16) | values["surface"]
    distinct, places = np.unique(keys, return_inverse=True)
    pairs = np.empty(len(distinct), _PAIR)
    pairs["action"], pairs["surface"] = distinct >> np.uint64(16) & np.uint64(0xFFFF), distinct & np.uint64(0xFFFF)
    counts = np.bincount((distinct >> np.uint64(32)).astype(np.int64), minlength=histories.count)
    offsets = offsets_of(counts)
    return pairs, offsets, places - np.repeat(offsets[:-1], histories.lengths)


def _headed(body: bytes, forgotten_through: int, *, width: int, events: int, pairs: int) -> bytes:
    marker = b"" if forgotten_through == NEVER else _MARKER.pack(forgotten_through)
    length, checks = _HEADER.size + len(marker), (zlib.crc32(body), zlib.crc32(marker))
    header = _HEADER.pack(_MAGIC, CODEC_VERSION, length, HASH_VERSION, width, events, pairs, *checks)
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


class _Body(NamedTuple):
    """One user's columns."""

    events: int
    pairs: int
    width: int
    pair_bytes: bytes
    time_bytes: bytes
    item_bytes: bytes
    code_bytes: bytes


def _body(data: bytes) -> _Body:
    """Raises DataError where anything but the codes is wrong."""
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
    times_at = header_length + _PAIR.itemsize * pair_count
    items_at = times_at + _TIME_BYTES * count
    codes_at = items_at + 8 * count
    columns = data[header_length:times_at], data[times_at:items_at], data[items_at:codes_at], data[codes_at:]
    return _Body(count, pair_count, width, *columns)


def _damaged(what: str) -> DataError:
    return DataError(f"damaged packed history: {what}", hint="`spoor verify --repair` rebuilds histories from the lake")
