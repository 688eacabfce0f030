"""A corpus: the whole histories of all users on disk, which training and evaluation read block by block.

    lake, table or event file -> partitions of whole users -> canonical histories, appended to flat columns

    FOLDER/timestamp.bin item.bin action.bin surface.bin   one little-endian number per event, users one after another
    FOLDER/offsets.npy                                      index of each user's first event
    FOLDER/users.parquet items.parquet                      user ids in the order of the columns; item ids and hashes
    FOLDER/corpus.json                                      counts, names, fingerprint and source

Building holds one partition, the offsets and the item ids in memory, for any number of events.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from spoor.activity.hashing import HASH_VERSION
from spoor.activity.history import EVENT_DTYPE, Histories
from spoor.activity.lake import Lake
from spoor.activity.settings import EventSettings
from spoor.base.errors import DataError
from spoor.base.files import replace_folder, unfinished_folder
from spoor.encoder.data.corpus_build import CorpusWriter, Scatter, source_identity

FORMAT_VERSION = 2
_BUILD_AGAIN = "remove the folder: it is built again from the events"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class CorpusStatistics:
    """Counts of all events. A share of no events is 0."""

    users: int
    items: int
    events: int
    mean_length: float  # events per user
    tie_share: float  # of pairs of a user's consecutive events: equal times in the source
    repeat_share: float  # of events: the user has an earlier event with the same item


@dataclass(frozen=True, eq=False)
class Corpus:
    """Users are numbered 0 to `users` - 1; user u has the events offsets[u] to offsets[u + 1], oldest first."""

    folder: Path
    users: int
    events: int
    offsets: npt.NDArray[np.int64]  # [users + 1]
    action_names: tuple[str, ...]  # distinct, sorted
    surface_names: tuple[str, ...]
    oldest_ms: int  # time of the oldest event
    newest_ms: int  # time of the newest event
    resolution_ms: int  # a day, minute, second or millisecond; the source's times are multiples of it
    fingerprint: str  # SHA-256 of every user's events: equal for equal sets of events
    counts: CorpusStatistics

    @classmethod
    def build(
        cls,
        source: Lake | pa.Table | Path,
        folder: Path,
        *,
        events: EventSettings,
        until_ms: int | None = None,
        shuffle_ties: int | None = None,
    ) -> Corpus:
        """Writes the corpus of all events before `until_ms` (exclusive), atomically. Keeps an existing corpus in
        `folder` if it has the same source, else replaces it.

        The events of a lake or table are a set, as everywhere in Spoor: equal events count once. In an event file
        (activity/sources/event_files.py) every row is an event: equal times of a user are put a millisecond apart, in
        the published order or, with `shuffle_ties`, in an order drawn from that seed. Raises UsageError for an
        unreadable file or if ties cannot be shuffled, DataError if there are no events, InfrastructureError if the
        folder cannot be written.
        """
        identity = source_identity(source, events=events, until_ms=until_ms, shuffle_ties=shuffle_ties)
        if _recorded_identity(folder) == identity:
            return cls.open(folder)
        with unfinished_folder(folder) as temporary:
            scatter = Scatter(temporary / "partitions", source, events=events, until_ms=until_ms)
            writer = CorpusWriter(temporary, scatter, shuffle_ties=shuffle_ties)
            record = writer.write()
            if record["events"] == 0:
                raise DataError(
                    "there are no events to train on",
                    hint="archive the topic first (`spoor archive`), or choose a later --until",
                )
            if record["raised_times"]:
                _LOG.warning("%d events were dated before their predecessor in `pos`: they got its time", writer.raised)
            shutil.rmtree(temporary / "partitions")
            record |= {"format_version": FORMAT_VERSION, "hash_version": HASH_VERSION, "source": identity}
            (temporary / "corpus.json").write_text(
                json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8"
            )
            if _recorded_identity(folder) != identity:  # else another process wrote it, and may read it now
                replace_folder(folder, temporary)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> Corpus:
        """Raises DataError if `folder` does not hold a complete corpus of this version."""
        try:
            record = json.loads((folder / "corpus.json").read_bytes())
            if (record["format_version"], record["hash_version"]) != (FORMAT_VERSION, HASH_VERSION):
                raise DataError(f"`{folder}` is a corpus of another version of Spoor", hint=_BUILD_AGAIN)
            corpus = cls(
                folder=folder,
                users=record["users"],
                events=record["events"],
                offsets=np.load(folder / "offsets.npy"),
                action_names=tuple(record["action_names"]),
                surface_names=tuple(record["surface_names"]),
                oldest_ms=record["oldest_ms"],
                newest_ms=record["newest_ms"],
                resolution_ms=record["resolution_ms"],
                fingerprint=record["fingerprint"],
                counts=CorpusStatistics(**record["statistics"]),
            )
            sizes = [(_column(folder, name).stat().st_size, EVENT_DTYPE[name].itemsize) for name in _COLUMNS]
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"`{folder}` does not hold a corpus: {error!r}", hint=_BUILD_AGAIN) from None
        if any(size != corpus.events * width for size, width in sizes) or corpus.offsets[-1] != corpus.events:
            raise DataError(f"`{folder}`: the columns do not have {corpus.events} events", hint=_BUILD_AGAIN)
        return corpus

    def read(self, first_user: int, last_user: int) -> Histories:
        """The whole histories of the users first_user to last_user - 1."""
        start, end = int(self.offsets[first_user]), int(self.offsets[last_user])
        values = np.empty(end - start, EVENT_DTYPE)
        for name in _COLUMNS:
            values[name] = self._read_column(name, start, end)
        return Histories(values, self.offsets[first_user : last_user + 1] - start)

    def times(self, first_user: int, last_user: int) -> npt.NDArray[np.int64]:
        """int64[n]: as `read`, only the timestamps in ms."""
        return self._read_column("timestamp", int(self.offsets[first_user]), int(self.offsets[last_user]))

    def blocks(self, max_events: int) -> list[tuple[int, int]]:
        """All users in order, as ranges (first_user, last_user) of at most `max_events` events, or of one user."""
        blocks: list[tuple[int, int]] = []
        first = 0
        while first < self.users:
            reached = int(np.searchsorted(self.offsets, self.offsets[first] + max_events, side="right")) - 1
            last = min(max(reached, first + 1), self.users)
            blocks.append((first, last))
            first = last
        return blocks

    def user_ids(self, first_user: int, last_user: int) -> list[str]:
        """The ids of the users first_user to last_user - 1."""
        ids: list[str] = []
        with pq.ParquetFile(self.folder / "users.parquet") as file:
            start = 0
            for group in range(file.num_row_groups):
                end = start + file.metadata.row_group(group).num_rows
                if start < last_user and end > first_user:
                    rows = file.read_row_group(group)["user_id"]
                    wanted = max(first_user - start, 0), min(last_user, end) - start
                    ids.extend(rows.slice(wanted[0], wanted[1] - wanted[0]).to_pylist())
                start = end
        return ids

    @cached_property
    def item_ids(self) -> tuple[str, ...]:
        """The distinct item ids, sorted."""
        return tuple(self._items["item_id"].to_pylist())

    @cached_property
    def item_hashes(self) -> npt.NDArray[np.uint64]:
        """uint64[items]: the hashes of `item_ids`."""
        return self._items["hash"].to_numpy()

    @property
    def _items(self) -> pa.Table:
        return pq.read_table(self.folder / "items.parquet")

    def _read_column(self, name: str, start: int, end: int) -> npt.NDArray[Any]:
        dtype = EVENT_DTYPE[name]  # not memory-mapped: mapped pages would count as the process's memory
        return np.fromfile(_column(self.folder, name), dtype, count=end - start, offset=start * dtype.itemsize)


_COLUMNS = ("timestamp", "item", "action", "surface")


def _column(folder: Path, name: str) -> Path:
    return folder / f"{name}.bin"


def _recorded_identity(folder: Path) -> object:
    try:
        record = json.loads((folder / "corpus.json").read_bytes())
        current = (record["format_version"], record["hash_version"]) == (FORMAT_VERSION, HASH_VERSION)
        return record["source"] if current else None
    except (OSError, KeyError, TypeError, ValueError):
        return None
