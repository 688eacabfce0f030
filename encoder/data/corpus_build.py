"""Builds a corpus in two passes over the events.

1. `Scatter` reads the source piece by piece, hashes names and appends every event to the partition of its user.
2. `CorpusWriter` reads one partition after the other, orders its users' events and appends them to the columns.

The order of users depends only on their ids and on the number of events.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from spoor.activity.events import FIELDS
from spoor.activity.hashing import hash_items, hash_names, old_names, user_hashes
from spoor.activity.history import EVENT_DTYPE, Histories, Values, canonical
from spoor.activity.lake import Lake
from spoor.activity.settings import EventDefaults, EventFields, EventSettings
from spoor.activity.sources.event_files import scan_events
from spoor.activity.sources.tables import count_rows, parts
from spoor.activity.sources.ties import raise_times, resolution_ms, separate_times, shuffle_keys
from spoor.base.errors import UsageError

_PARTITION_EVENTS = 250_000
_MOST_PARTITIONS = 500  # files open at once
_PIECE_ROWS = 131_072  # rows of a table in one piece
_OLD_EVENT = np.dtype([("timestamp", "<i8"), ("item", "<u8"), ("action", "<u2"), ("surface", "<u2")])
_ROW = pa.schema(
    [
        pa.field("user_id", pa.string()),
        pa.field("place", pa.int64()),  # the event's `pos`, else its row in the source
        pa.field("timestamp", pa.int64()),
        pa.field("item", pa.uint64()),
        pa.field("action", pa.uint64()),
        pa.field("surface", pa.uint64()),
    ]
)


def source_identity(
    source: Lake | pa.Table | Path, *, events: EventSettings, until_ms: int | None, shuffle_ties: int | None
) -> dict[str, Any]:
    """The identity of a corpus's source, for JSON. Raises UsageError for a source whose ties cannot be shuffled or a
    missing file."""
    if shuffle_ties is not None and not isinstance(source, Path):
        raise UsageError(
            "only the ties of an event file can be shuffled: the events of a lake have an order of their own",
            hint="name a file with --data, or leave out --shuffle-ties",
        )
    if isinstance(source, Lake):
        files = source.files()
        listed = "\n".join(f"{path.relative_to(source.folder)} {path.stat().st_size}" for path in files)
        what = {"lake": str(source.folder.resolve()), "files": hashlib.sha256(listed.encode()).hexdigest()}
    elif isinstance(source, Path):
        try:
            states = [(path, path.stat()) for path in parts(source)]
        except OSError as error:
            raise UsageError(f"cannot read `{source}`: {error}", hint="check the path and the file's format") from None
        what: dict[str, Any] = {"file": str(source.resolve()), "bytes": sum(state.st_size for _, state in states)}
        what["changed_ns"] = max(state.st_mtime_ns for _, state in states)
        if source.is_dir():
            listed = "\n".join(f"{path.relative_to(source)} {state.st_size}" for path, state in states)
            what["files"] = hashlib.sha256(listed.encode()).hexdigest()
        if (events.fields, events.defaults) != (EventFields(), EventDefaults()):
            what |= {"fields": asdict(events.fields), "defaults": asdict(events.defaults)}
    else:
        digest = hashlib.sha256()
        for batch in source.select(list(FIELDS)).to_batches():
            digest.update(batch.serialize())
        what = {"table": digest.hexdigest()}
    return what | {"until_ms": until_ms, "shuffle_ties": shuffle_ties}


class Scatter:
    """The first pass, run by the constructor. Results: `partitions` (files), `item_ids`, `action_names` and
    `surface_names` (sorted), `resolution_ms` and `has_places` (whether they have a `pos`) of the events."""

    def __init__(
        self, folder: Path, source: Lake | pa.Table | Path, *, events: EventSettings, until_ms: int | None
    ) -> None:
        folder.mkdir()
        self.is_file = isinstance(source, Path)
        self.has_places = False
        self.resolution_ms = 1
        self._names = {name: _Names() for name in ("item_id", "action", "surface")}
        pieces, expected = _pieces(source, events, until_ms)
        wanted = -(-max(expected, 1) // _PARTITION_EVENTS)
        count = min(wanted, _MOST_PARTITIONS)
        self.partitions = [folder / f"{number:03d}.arrow" for number in range(count)]
        rows = 0
        units: set[int] = set()
        with ExitStack() as stack:
            writers = [stack.enter_context(pa.OSFile(str(path), "wb")) for path in self.partitions]
            writers = [stack.enter_context(pa.ipc.new_stream(file, _ROW)) for file in writers]
            for table in pieces:
                self.has_places |= "pos" in table.column_names
                if len(table):
                    units.add(resolution_ms(table["timestamp"].to_numpy()))
                    self._scatter(table, rows, writers)
                rows += len(table)
        if self.is_file and units:
            self.resolution_ms = min(units)
        self.item_ids, self.action_names, self.surface_names = (names.sorted() for names in self._names.values())

    def _scatter(self, table: pa.Table, first_row: int, writers: list[pa.RecordBatchStreamWriter]) -> None:
        users = table["user_id"].combine_chunks().dictionary_encode()
        partitions = user_hashes(users.dictionary.to_pylist()) % np.uint64(len(writers))
        partition = partitions[users.indices.to_numpy()].astype(np.int64)
        columns: list[Any] = [
            table["user_id"],
            table["pos"] if self.has_places else pa.array(first_row + np.arange(len(table))),
            table["timestamp"],
        ]
        for name, hashes in (("item_id", hash_items), ("action", hash_names), ("surface", hash_names)):
            encoded = table[name].combine_chunks().dictionary_encode()
            self._names[name].add(encoded.dictionary)
            columns.append(pa.array(hashes(encoded.dictionary.to_pylist())[encoded.indices.to_numpy()]))
        rows = pa.table(columns, schema=_ROW)
        order = np.argsort(partition, kind="stable")
        rows = rows.take(order)
        ends = np.cumsum(np.bincount(partition, minlength=len(writers)))
        for writer, start, end in zip(writers, [0, *ends[:-1]], ends, strict=True):
            if end > start:
                writer.write_table(rows.slice(start, end - start))


class CorpusWriter:
    """The second pass: `write` writes all files of a corpus but corpus.json to `folder` and returns its record."""

    def __init__(self, folder: Path, scatter: Scatter, *, shuffle_ties: int | None) -> None:
        self.folder = folder
        self.scatter = scatter
        self.shuffle_ties = shuffle_ties
        self.raised = self.ties = self.repeats = self.events = 0
        self.digest = UserDigest(scatter.action_names, scatter.surface_names)
        self.oldest_ms, self.newest_ms = 2**63 - 1, 0

    def write(self) -> dict[str, Any]:
        lengths: list[npt.NDArray[np.int64]] = [np.empty(0, np.int64)]
        with ExitStack() as stack:
            users = stack.enter_context(
                pq.ParquetWriter(self.folder / "users.parquet", pa.schema([_ROW.field("user_id")]), compression="zstd")
            )
            files = {
                str(name): stack.enter_context(open(self.folder / f"{name}.bin", "wb"))
                for name in EVENT_DTYPE.fields or ()
            }
            for path in self.scatter.partitions:
                user_ids, histories = self._histories(path)
                if histories.count == 0:
                    continue
                users.write_table(pa.table({"user_id": user_ids}))
                for name, file in files.items():
                    np.ascontiguousarray(histories.values[name]).tofile(file)
                lengths.append(histories.lengths)
                self._count(user_ids, histories)
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
        np.save(self.folder / "offsets.npy", offsets)
        self._write_items()
        return self._record(users=len(offsets) - 1)

    def _histories(self, partition: Path) -> tuple[pa.Array, Histories]:
        """The users of a partition, sorted by id, and their histories."""
        with pa.OSFile(str(partition)) as file, pa.ipc.open_stream(file) as reader:
            table = reader.read_all()
        encoded = table["user_id"].combine_chunks().dictionary_encode()
        by_id = pc.sort_indices(encoded.dictionary).to_numpy()
        number = np.empty(len(by_id), np.int64)
        number[by_id] = np.arange(len(by_id))
        users = number[encoded.indices.to_numpy()]
        user_ids = encoded.dictionary.take(pa.array(by_id))
        values = np.empty(len(table), EVENT_DTYPE)
        for name in EVENT_DTYPE.names or ():
            values[name] = table[name].to_numpy()
        places = table["place"].to_numpy()
        del table, encoded
        if self.scatter.is_file:
            return user_ids, self._published(user_ids, users, values, places)
        histories = canonical(users, values, len(user_ids))
        self.ties += _count_ties(histories)
        return user_ids, histories

    def _published(
        self, user_ids: pa.Array, users: npt.NDArray[np.int64], values: Values, places: npt.NDArray[np.int64]
    ) -> Histories:
        """The rows of an event file: every row is an event, and its place orders equal times."""
        if self.scatter.has_places:
            raised = raise_times(users, values["timestamp"], places)
            self.raised += int((raised != values["timestamp"]).sum())
            values["timestamp"] = raised
        keys = [values["surface"], values["action"], values["item"], places]
        if self.shuffle_ties is not None:
            hashes = user_hashes(user_ids.to_pylist())[users]
            keys = [*keys[:2], shuffle_keys(hashes, values, seed=self.shuffle_ties)]
        order = np.lexsort((*keys, values["timestamp"], users))
        users, values = users[order], values[order]
        offsets = np.searchsorted(users, np.arange(len(user_ids) + 1))
        self.ties += _count_ties(Histories(values, offsets))
        values["timestamp"] = separate_times(users, values["timestamp"])
        return Histories(values, offsets)

    def _count(self, user_ids: pa.Array, histories: Histories) -> None:
        self.events += len(histories.values)
        self.repeats += histories.repeats()
        self.oldest_ms = min(self.oldest_ms, int(histories.values["timestamp"].min()))
        self.newest_ms = max(self.newest_ms, int(histories.values["timestamp"].max()))
        self.digest.add(user_ids.to_pylist(), histories)

    def _write_items(self) -> None:
        items = pa.array(self.scatter.item_ids, pa.string())
        table = pa.table({"item_id": items, "hash": pa.array(hash_items(self.scatter.item_ids))})
        pq.write_table(table, self.folder / "items.parquet", compression="zstd")

    def _record(self, *, users: int) -> dict[str, Any]:
        statistics = {
            "users": users,
            "items": len(self.scatter.item_ids),
            "events": self.events,
            "mean_length": self.events / max(users, 1),
            "tie_share": self.ties / max(self.events - users, 1),
            "repeat_share": self.repeats / max(self.events, 1),
        }
        return {
            "users": users,
            "events": self.events,
            "oldest_ms": self.oldest_ms,
            "newest_ms": self.newest_ms,
            "resolution_ms": self.scatter.resolution_ms,
            "raised_times": self.raised,
            "action_names": list(self.scatter.action_names),
            "surface_names": list(self.scatter.surface_names),
            "fingerprint": self.digest.hexdigest(),
            "statistics": statistics,
        }


class UserDigest:
    """SHA-256 of users with their events, in any order of the users: the users' digests are summed modulo 2^256.

    If all names have distinct hashes in version 1, it digests the events of that version. The digest of a release's
    training events then stays what it was in version 1."""

    def __init__(self, *names: list[str]) -> None:
        hashes = map(hash_names, names)
        told_apart = all(len(np.unique(old_names(each))) == len(each) for each in hashes)
        self._layout = _OLD_EVENT if told_apart else EVENT_DTYPE
        self._sum = 0

    def add(self, user_ids: list[str], histories: Histories) -> None:
        values = histories.values
        if self._layout == _OLD_EVENT:
            values = np.empty(len(values), _OLD_EVENT)
            for name in ("timestamp", "item"):
                values[name] = histories.values[name]
            for name in ("action", "surface"):
                values[name] = old_names(histories.values[name])
        events = memoryview(values.tobytes())
        bounds = (histories.offsets * self._layout.itemsize).tolist()
        for user, start, end in zip(user_ids, bounds[:-1], bounds[1:], strict=True):
            digest = hashlib.sha256(f"{len(user.encode())} {user} ".encode())
            digest.update(events[start:end])
            self._sum += int.from_bytes(digest.digest(), "little")
        self._sum %= 2**256

    def hexdigest(self) -> str:
        return hashlib.sha256(self._sum.to_bytes(32, "little")).hexdigest()


class _Names:
    """The distinct strings of many arrays."""

    def __init__(self) -> None:
        self._distinct = pa.array([], pa.string())
        self._added: list[pa.Array] = []

    def add(self, names: pa.Array) -> None:
        self._added.append(names)
        if sum(map(len, self._added)) > max(len(self._distinct), 1_000_000):
            self._merge()

    def sorted(self) -> list[str]:
        self._merge()
        return sorted(self._distinct.to_pylist())

    def _merge(self) -> None:
        self._distinct = pc.unique(pa.chunked_array([self._distinct, *self._added], pa.string()))
        self._added = []


def _count_ties(histories: Histories) -> int:
    """Number of pairs of a user's consecutive events with equal times."""
    equal = np.diff(histories.values["timestamp"]) == 0
    users = np.repeat(np.arange(histories.count), histories.lengths)
    return int((equal & (np.diff(users) == 0)).sum())


def _pieces(
    source: Lake | pa.Table | Path, events: EventSettings, until_ms: int | None
) -> tuple[Iterator[pa.Table], int]:
    """The source in pieces, and its number of events or an upper bound of it."""
    if isinstance(source, Lake):
        expected = sum(entry["rows"] for entry in source.manifest.records().values())
        return source.batches(to_ms=until_ms, columns=list(FIELDS)), expected
    if isinstance(source, Path):
        pieces = scan_events(source, events, now_ms=time.time_ns() // 1_000_000)
        expected = count_rows(source)
        if expected is None:  # text has no row count: all of it stays in memory until counted
            whole = list(pieces)
            pieces, expected = iter(whole), sum(map(len, whole))
    else:
        pieces = (source.slice(start, _PIECE_ROWS) for start in range(0, len(source), _PIECE_ROWS))
        expected = len(source)
    if until_ms is not None:
        pieces = (piece.filter(pc.less(piece["timestamp"], until_ms)) for piece in pieces)
    return pieces, expected
