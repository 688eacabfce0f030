"""The packed history: one user's events as bytes, as stored in Feast.

Little-endian, column after column (n events, k distinct (action, surface) pairs, m distinct names in them):

    header   24 bytes   magic "SPH", codec version u8, header length u16, hash version u8, code width u8,
                        events n u32, pairs k u32, CRC-32 of everything after the header u32,
                        CRC-32 of the header after these 24 bytes u32 (0 if it ends there)
              8 bytes   cut-off i64, ms since 1970: only of a deleted user
    names    4 + 8·m    m u32, then the name hashes u64, ascending
    pairs    2·w·k      action and surface as indexes into names
    times    6·n        ms since 1970 + 2^47, unsigned
    items    8·n        item hash u64
    codes    c·n        index into pairs; c is the code width

Indexes are unsigned; their width depends on their table: 1 byte up to 256 entries, 2 up to 65,536, else 4 (w follows
from m). So an event takes 15 bytes, or 16 with more than 256 pairs. Later versions may lengthen the header: readers
skip the bytes between the fields they know and its stated length.

Codec version 1 can be read too. In place of names and pairs it has k times action u16, surface u16: names of 16 bits.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from spoor.activity.hashing import HASH_VERSION
from spoor.activity.history import EVENT_DTYPE, NEVER, Histories, Int64s, offsets_of
from spoor.base.errors import DataError

CODEC_VERSION = 2
_HASH_VERSIONS = {1: 1, CODEC_VERSION: HASH_VERSION}  # by codec version
_MAGIC = b"SPH"
_HEADER = struct.Struct("<3sBHBBIIII")
_MARKER = struct.Struct("<q")
_TIME_BYTES = 6
_TIME_ORIGIN = 1 << 47
_COUNT = struct.Struct("<I")


def pack(histories: Histories, forgotten_through: Int64s | None = None) -> list[bytes]:
    """One byte string per user. `forgotten_through` int64[U] in ms: each user's cut-off, NEVER for a user who was not
    deleted; the default is NEVER for all. Raises DataError for a time beyond ±2^47 ms (the years -2490 to 6429)."""
    times = histories.values["timestamp"]
    if len(times) and not (times.min() >= -_TIME_ORIGIN and times.max() < _TIME_ORIGIN):
        raise DataError("a history holds a time beyond ±2^47 ms, which its packed form cannot carry")
    through = [NEVER] * histories.count if forgotten_through is None else forgotten_through.tolist()
    tables = _tables(histories)
    # NumPy is called once per column, not once per user; each user's slices are cut from the columns' bytes.
    name_bytes, item_bytes = tables.names.tobytes(), histories.values["item"].astype("<u8").tobytes()
    shifted = (times + _TIME_ORIGIN).astype("<u8").view(np.uint8).reshape(-1, 8)
    time_bytes = shifted[:, :_TIME_BYTES].tobytes()
    pair_bytes, pair_widths = _index_bytes(tables.pairs, tables.name_offsets)
    code_bytes, code_widths = _index_bytes(tables.codes, tables.pair_offsets)
    bounds = histories.offsets.tolist()
    name_bounds, pair_bounds = tables.name_offsets.tolist(), tables.pair_offsets.tolist()
    packed = []
    for user in range(histories.count):
        start, end, first, last = *bounds[user : user + 2], *pair_bounds[user : user + 2]
        first_name, last_name = name_bounds[user : user + 2]
        pair_width, width = 2 * pair_widths[user], code_widths[user]
        body = b"".join(
            (
                _COUNT.pack(last_name - first_name),
                name_bytes[8 * first_name : 8 * last_name],
                pair_bytes[pair_width // 2][pair_width * first : pair_width * last],
                time_bytes[_TIME_BYTES * start : _TIME_BYTES * end],
                item_bytes[8 * start : 8 * end],
                code_bytes[width][width * start : width * end],
            )
        )
        packed.append(_headed(body, through[user], width=width, events=end - start, pairs=last - first))
    return packed


def unpack(packed: Sequence[bytes]) -> Histories:
    """The histories in the given order. Raises DataError if any is damaged or has another version."""
    bodies = [_body(data) for data in packed]
    lengths, pair_counts, name_counts = np.array([body[:3] for body in bodies], np.int64).reshape(-1, 3).T
    offsets = offsets_of(lengths)
    names = np.frombuffer(b"".join(body.name_bytes for body in bodies), "<u8")
    pairs = _indexes([body.pair_bytes for body in bodies], [body.pair_width for body in bodies])
    codes = _indexes([body.code_bytes for body in bodies], [body.width for body in bodies])
    chosen = _look_up(names, pairs, name_counts, 2 * pair_counts).reshape(-1, 2)
    chosen = _look_up(chosen, codes, pair_counts, lengths)
    times = np.zeros((offsets[-1], 8), np.uint8)
    time_bytes = np.frombuffer(b"".join(body.time_bytes for body in bodies), np.uint8)
    times[:, :_TIME_BYTES] = time_bytes.reshape(-1, _TIME_BYTES)
    events = np.empty(offsets[-1], EVENT_DTYPE)
    events["timestamp"] = times.view("<u8")[:, 0].astype(np.int64) - _TIME_ORIGIN
    events["item"] = np.frombuffer(b"".join(body.item_bytes for body in bodies), "<u8")
    events["action"], events["surface"] = chosen[:, 0], chosen[:, 1]
    return Histories(events, offsets)


class Readable(NamedTuple):
    """The readable part of some stored histories."""

    histories: Histories  # empty if the bytes cannot be read
    forgotten_through: Int64s  # as `read_forgotten_through`; NEVER if the bytes cannot be read
    unreadable: npt.NDArray[np.bool_]  # [U]


def unpack_readable(packed: Sequence[bytes | None]) -> Readable:
    """Like `unpack` and `read_forgotten_through`, but damaged bytes and other versions do not affect other users. None
    is a history without events."""
    given = [_EMPTY if data is None else data for data in packed]
    try:
        return Readable(unpack(given), read_forgotten_through(given), np.zeros(len(given), bool))
    except DataError:
        unreadable = np.array([not _is_readable(data) for data in given])
        sound = [_EMPTY if bad else data for data, bad in zip(given, unreadable, strict=True)]
        return Readable(unpack(sound), read_forgotten_through(sound), unreadable)


def _is_readable(data: bytes) -> bool:
    try:
        unpack([data])
    except DataError:
        return False
    return True


def holds_events(packed: bytes) -> bool:
    """Whether the history has events, by its header: a deleted user's history may be a marker only. Raises DataError if
    the header is incomplete."""
    if len(packed) < _HEADER.size:
        raise _damaged(f"{len(packed)} bytes, shorter than its header")
    return _HEADER.unpack_from(packed)[5] > 0


def read_forgotten_through(packed: Sequence[bytes]) -> Int64s:
    """int64[U] in ms: each user's cut-off, NEVER for a user who was not deleted. Raises DataError as `unpack`."""
    return np.fromiter((_marker(data) for data in packed), np.int64, count=len(packed))


class _Tables(NamedTuple):
    """Names and pairs of all users, user after user, ascending within a user."""

    names: npt.NDArray[np.uint64]
    name_offsets: Int64s  # [U + 1]
    pairs: Int64s  # [2P]: action and surface of each pair, as indexes into its user's names
    pair_offsets: Int64s  # [U + 1]
    codes: Int64s  # [N]: the index of each event's pair among its user's pairs


def _tables(histories: Histories) -> _Tables:
    values, lengths, users = histories.values, histories.lengths, histories.count
    names, of_event = _factorised(np.concatenate([values["action"], values["surface"]]))
    actions, surfaces = of_event.reshape(2, -1)
    pairs, of_event = _factorised(actions * len(names) + surfaces)
    keys = np.repeat(np.arange(users), lengths) * len(pairs) + of_event
    keys, places = _distinct(keys, users * len(pairs))
    owners, of_pair = np.divmod(keys, max(len(pairs), 1))
    pair_offsets = offsets_of(np.bincount(owners, minlength=users))
    codes = places - np.repeat(pair_offsets[:-1], lengths)

    in_pairs = np.stack(np.divmod(pairs[of_pair], max(len(names), 1)), axis=1).reshape(-1)
    owners = np.repeat(owners, 2)
    keys, places = _distinct(owners * len(names) + in_pairs, users * len(names))
    name_owners, of_name = np.divmod(keys, max(len(names), 1))
    name_offsets = offsets_of(np.bincount(name_owners, minlength=users))
    return _Tables(names[of_name], name_offsets, places - name_offsets[owners], pair_offsets, codes)


def _factorised(numbers: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], Int64s]:
    """The distinct numbers, ascending, and the index of each number among them. It sorts the distinct numbers only, so
    with few of them it is faster than np.unique."""
    array = pa.Array.from_buffers(pa.from_numpy_dtype(numbers.dtype), len(numbers), [None, pa.py_buffer(numbers)])
    encoded = array.dictionary_encode()
    distinct, indices = _numpy(encoded.dictionary, numbers.dtype), _numpy(encoded.indices, np.dtype(np.int32))
    order = np.argsort(distinct)
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    return distinct[order], places[indices]


def _numpy(array: pa.Array, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Like `to_numpy`, which imports pandas."""
    return np.frombuffer(array.buffers()[1], dtype, count=len(array))


def _distinct(keys: Int64s, bound: int) -> tuple[Int64s, Int64s]:
    """The distinct keys, ascending, and the index of each key among them. Keys are in [0, bound)."""
    if bound > 8 * len(keys):
        return np.unique(keys, return_inverse=True)
    present = np.zeros(bound, bool)
    present[keys] = True
    return np.flatnonzero(present), (np.cumsum(present) - 1)[keys]


def _width(entries: int) -> int:
    """Bytes of an index into a table with that many entries."""
    return 1 if entries <= 1 << 8 else 2 if entries <= 1 << 16 else 4


def _index_bytes(indexes: Int64s, table_offsets: Int64s) -> tuple[dict[int, bytes], list[int]]:
    """All indexes as bytes, by width, and each user's width."""
    widths = [_width(entries) for entries in np.diff(table_offsets).tolist()]
    return {width: indexes.astype(f"<u{width}").tobytes() for width in set(widths)}, widths


def _indexes(columns: Sequence[bytes], widths: Sequence[int]) -> Int64s:
    """All users' indexes, concatenated, from columns of these widths."""
    if len(set(widths)) <= 1:
        width = widths[0] if widths else 1
        return np.frombuffer(b"".join(columns), f"<u{width}").astype(np.int64)
    parts = (np.frombuffer(column, f"<u{width}") for column, width in zip(columns, widths, strict=True))
    return np.concatenate([part.astype(np.int64) for part in parts])


def _look_up(table: npt.NDArray[Any], indexes: Int64s, entries: Int64s, counts: Int64s) -> npt.NDArray[Any]:
    """The entries for each user's `counts` indexes, which refer to the user's own `entries` of the table. Raises
    DataError for an index out of range."""
    if (indexes >= np.repeat(entries, counts)).any():
        raise _damaged("it refers to an entry of its tables that is not there")
    return table[indexes + np.repeat(offsets_of(entries)[:-1], counts)]


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
    names: int
    width: int
    pair_width: int
    name_bytes: bytes
    pair_bytes: bytes
    time_bytes: bytes
    item_bytes: bytes
    code_bytes: bytes


def _body(data: bytes) -> _Body:
    """Splits a packed history into its columns. Raises DataError for any damage except a bad index."""
    if len(data) < _HEADER.size:
        raise _damaged(f"{len(data)} bytes, shorter than its header")
    magic, version, header_length, hash_version, width, events, pairs, crc, _ = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise _damaged(f"it starts with {data[:3]!r}, not {_MAGIC!r}")
    if _HASH_VERSIONS.get(version) != hash_version:
        raise DataError(
            f"packed history of codec version {version}, hash version {hash_version}; "
            f"this program reads {' and '.join(f'{codec} with {names}' for codec, names in _HASH_VERSIONS.items())}",
            hint="read it with the Spoor that wrote it, or rebuild it with `spoor verify --repair`",
        )
    if header_length < _HEADER.size or len(data) < header_length:
        raise _damaged(f"{len(data)} bytes, but its header promises {header_length} and more")
    if zlib.crc32(memoryview(data)[header_length:]) != crc:
        raise _damaged("its checksum does not match")
    _marker(data)  # raises if it is damaged
    names_at, names = (header_length, 2 * pairs) if version == 1 else _names_of(data, header_length)
    pair_width = _width(names)
    pairs_at = names_at + (2 if version == 1 else 8) * names
    times_at = pairs_at + (0 if version == 1 else 2 * pair_width * pairs)
    items_at = times_at + _TIME_BYTES * events
    codes_at = items_at + 8 * events
    if width not in (1, 2, 4) or len(data) != codes_at + width * events:
        raise _damaged(f"{len(data)} bytes, but its header promises {codes_at + width * events}")
    name_bytes, pair_bytes = data[names_at:pairs_at], data[pairs_at:times_at]
    if version == 1:  # its pairs hold the names themselves
        name_bytes = np.frombuffer(name_bytes, "<u2").astype("<u8").tobytes()
        pair_bytes = np.arange(names).astype(f"<u{pair_width}").tobytes()
    columns = data[times_at:items_at], data[items_at:codes_at], data[codes_at:]
    return _Body(events, pairs, names, width, pair_width, name_bytes, pair_bytes, *columns)


def _names_of(data: bytes, at: int) -> tuple[int, int]:
    """The position and the number of the names. Raises DataError."""
    if len(data) < at + _COUNT.size:
        raise _damaged("the number of its names is missing")
    return at + _COUNT.size, _COUNT.unpack_from(data, at)[0]


_EMPTY = pack(Histories.empty(1))[0]


def _damaged(what: str) -> DataError:
    return DataError(f"damaged packed history: {what}", hint="`spoor verify --repair` rebuilds histories from the lake")
