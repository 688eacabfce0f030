"""The lake: every event from Kafka, in Parquet, with its partition and offset.

    FOLDER/day=2026-01-31/bucket=03/<item>.parquet    day = the broker's append day, so old days never change
    FOLDER/_manifest/<item>.json                      one per finished work item: it decides what the lake contains
    FOLDER/_backfilled.json                           offsets up to which a backfill has written the online store
    FOLDER/_forgotten.json                            deleted users (activity/forgotten.py): `read` and `batches`
                                                      leave out their deleted events, even if files still hold them

Readers ignore data files that no manifest entry names: a crash has left them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from spoor.activity.events import EVENT_SCHEMA
from spoor.activity.forgotten import ForgottenUsers
from spoor.activity.hashing import buckets_of
from spoor.activity.settings import LakeSettings
from spoor.base.errors import DataError, UsageError
from spoor.base.files import Manifest, atomic_path, atomic_write

LAKE_SCHEMA = pa.schema(
    [
        *EVENT_SCHEMA,
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("append_time", pa.int64(), nullable=False),  # ms since 1970 UTC, the broker's clock
    ]
)
_DAY_MS = 86_400_000


def open_lake(settings: LakeSettings, *, items: Collection[str] | None = None) -> Lake:
    """The lake of the settings. `items`: readers see these work items only."""
    return Lake(settings.folder, buckets=settings.buckets, items=items)


class Lake:
    """`buckets`: the number of user buckets, fixed by the lake's first write. `items`: `files`, `read` and `batches`
    see only these work items, so that their results do not change while an archive job adds others."""

    def __init__(self, folder: Path, *, buckets: int, items: Collection[str] | None = None) -> None:
        self.folder = folder
        self.buckets = buckets
        self._items = items
        self.manifest = Manifest(folder / "_manifest")
        self._check_buckets()

    def write(self, item: str, events: pa.Table, record: dict[str, Any]) -> None:
        """Writes the rows (LAKE_SCHEMA) of one work item, then its manifest entry: `record` (partition, start, end, …)
        with `files` and `rows` added. A repeated call writes the same files. Raises InfrastructureError."""
        events = events.select(LAKE_SCHEMA.names).cast(LAKE_SCHEMA)
        if not self._marker.exists():
            atomic_write(self._marker, f"{self.buckets}\n".encode())
        days = events["append_time"].to_numpy() // _DAY_MS
        buckets = buckets_of(events["user_id"].to_pylist(), self.buckets)
        files: list[dict[str, Any]] = []
        for day, bucket in sorted(set(zip(days.tolist(), buckets.tolist(), strict=True))):
            part = events.filter(pa.array((days == day) & (buckets == bucket)))
            date = datetime.fromtimestamp(day * 86_400, UTC).date().isoformat()
            name = f"day={date}/bucket={bucket:02d}/{item}.parquet"
            with atomic_path(self.folder / name) as temporary:
                pq.write_table(part, temporary, compression="zstd")
            files.append({"name": name, "bucket": bucket, "rows": len(part)})
        self.manifest.add(item, record | {"files": files, "rows": len(events)})

    def has(self, item: str) -> bool:
        return self.manifest.get(item) is not None

    def ranges(self) -> dict[str, dict[str, Any]]:
        """The manifest entries of Kafka offset ranges, by work item. Events that `spoor merge-users` has moved to
        another user are items without a range."""
        return {item: entry for item, entry in self.manifest.records().items() if "partition" in entry}

    def partitions(self) -> list[int]:
        """The Kafka partitions with a range in the lake."""
        return sorted({entry["partition"] for entry in self.ranges().values()})

    def covered(self, partition: int) -> list[tuple[int, int]]:
        """The offset ranges [start, end) of a Kafka partition in the lake, merged and ascending."""
        ranges: list[tuple[int, int]] = []
        entries = self.ranges().values()
        for start, end in sorted((e["start"], e["end"]) for e in entries if e["partition"] == partition):
            if ranges and start <= ranges[-1][1]:
                ranges[-1] = (ranges[-1][0], max(end, ranges[-1][1]))
            else:
                ranges.append((start, end))
        return ranges

    def ends(self) -> dict[int, int]:
        """By Kafka partition: the end of the first contiguous range of offsets in the lake."""
        return {partition: self.covered(partition)[0][1] for partition in self.partitions()}

    def note_backfilled(self, ends: dict[int, int]) -> None:
        """Records that the online store holds everything before these offsets (`ends` when the backfill began)."""
        atomic_write(self._backfilled, json.dumps(ends).encode())

    def backfilled(self) -> dict[int, int]:
        """The offsets of the last `note_backfilled`; empty before the first backfill."""
        if not self._backfilled.exists():
            return {}
        return {int(partition): end for partition, end in json.loads(self._backfilled.read_bytes()).items()}

    def files(self, bucket: int | None = None) -> list[Path]:
        """The data files in the manifest, of one user bucket or of all."""
        records = self.manifest.records()
        entries = [record for item, record in records.items() if self._items is None or item in self._items]
        listed = [file for entry in entries for file in entry["files"] if bucket in (None, file["bucket"])]
        return [self.folder / name for name in sorted(file["name"] for file in listed)]

    @property
    def forgotten(self) -> ForgottenUsers:
        """The deleted users, read at every access: another process may have added some."""
        return ForgottenUsers(self.folder / "_forgotten.json")

    def purge(self, item: str, buckets: Sequence[int], forgotten: ForgottenUsers) -> int:
        """Rewrites the work item's files of these user buckets without deleted events; returns the number of removed
        rows. No other process may write the item meanwhile. An interrupted run can be repeated: each file is replaced
        as a whole, and the manifest gets the actual number of rows. Raises DataError on a damaged file,
        InfrastructureError."""
        record = self.manifest.get(item)
        if record is None:
            return 0
        removed = 0
        files: list[dict[str, Any]] = []
        for file in record["files"]:
            if file["bucket"] in buckets:
                past, kept = self._purge_file(self.folder / file["name"], forgotten)
                removed, file = removed + past, file | {"rows": kept}
            files.append(file)
        changed = record | {"files": files, "rows": sum(file["rows"] for file in files)}
        if changed != record:
            self.manifest.add(item, changed)
        return removed

    def users_with_past(self) -> set[str]:
        """The users with deleted events still in files, hidden from `read`: their deletion was interrupted. Reads two
        columns of every file. Raises DataError on a damaged file."""
        forgotten, users = self.forgotten, set[str]()
        for path in self.files() if len(forgotten) else ():
            events = _read(path, ["user_id", "timestamp"], self.manifest.folder)
            users.update(pc.unique(events.filter(pa.array(forgotten.past(events)))["user_id"]).to_pylist())
        return users

    def read(
        self,
        *,
        bucket: int | None = None,
        from_ms: int | None = None,
        to_ms: int | None = None,
        columns: list[str] | None = None,
    ) -> pa.Table:
        """Events with from_ms <= timestamp < to_ms, unordered. Raises DataError on a missing or damaged file."""
        tables = list(self.batches(bucket=bucket, from_ms=from_ms, to_ms=to_ms, columns=columns))
        schema = LAKE_SCHEMA if columns is None else pa.schema([LAKE_SCHEMA.field(name) for name in columns])
        return pa.concat_tables([schema.empty_table(), *tables])

    def batches(
        self,
        *,
        bucket: int | None = None,
        from_ms: int | None = None,
        to_ms: int | None = None,
        columns: list[str] | None = None,
    ) -> Iterator[pa.Table]:
        """Like `read`, one table per file."""
        wanted = LAKE_SCHEMA.names if columns is None else columns
        forgotten = self.forgotten
        needed = {*wanted, "timestamp", "user_id"} if len(forgotten) else {*wanted, "timestamp"}
        for path in self.files(bucket):
            table = forgotten.without_past(_read(path, list(needed), self.manifest.folder))
            if from_ms is not None:
                table = table.filter(pc.greater_equal(table["timestamp"], from_ms))
            if to_ms is not None:
                table = table.filter(pc.less(table["timestamp"], to_ms))
            yield table.select(wanted).cast(pa.schema([LAKE_SCHEMA.field(name) for name in wanted]))

    def remove_orphans(self) -> int:
        """Deletes data files that no manifest entry names; returns their number. Nothing else may write meanwhile."""
        named = set(self.files())
        ours = (path for path in self.folder.glob("day=*/bucket=*/*") if ".parquet" in path.name and path.is_file())
        found = [path for path in ours if path not in named]
        for path in found:
            path.unlink()
        return len(found)

    def _purge_file(self, path: Path, forgotten: ForgottenUsers) -> tuple[int, int]:
        """The numbers of removed and remaining rows. An empty file stays: a reader may be about to open it."""
        past = forgotten.past(_read(path, ["user_id", "timestamp"], self.manifest.folder))
        if past.any():
            kept = _read(path, LAKE_SCHEMA.names, self.manifest.folder).filter(pa.array(~past))
            with atomic_path(path) as temporary:
                pq.write_table(kept.select(LAKE_SCHEMA.names).cast(LAKE_SCHEMA), temporary, compression="zstd")
        return int(past.sum()), int((~past).sum())

    @property
    def _backfilled(self) -> Path:
        return self.folder / "_backfilled.json"

    @property
    def _marker(self) -> Path:
        return self.folder / "_buckets"

    def _check_buckets(self) -> None:
        if not self._marker.exists():
            if foreign := next(self.folder.glob("day=*/bucket=*"), None):
                # An archive job deletes files in this folder that its manifest does not name.
                raise UsageError(
                    f"`{self.folder}` holds {foreign.relative_to(self.folder)}, which Spoor has not written: "
                    "`_buckets` is missing",
                    hint="set lake.folder to a folder of its own, or restore the lake whole from a copy",
                )
            return
        text = self._marker.read_text(encoding="utf-8").strip()
        if not re.fullmatch(r"[0-9]+", text):
            raise DataError(
                f"`{self._marker}` holds {text[:40]!r}, expected the number of user buckets of the lake",
                hint="restore it from a copy, or archive into another lake.folder",
            )
        if int(text) != self.buckets:
            raise UsageError(
                f"the lake `{self.folder}` was written with {text} user buckets, the setting lake.buckets is "
                f"{self.buckets}",
                hint=f"set lake.buckets = {text}, or archive into another folder",
            )


def _read(path: Path, columns: list[str], manifest: Path) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns, partitioning=None)  # pyright: ignore[reportArgumentType]
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"cannot read lake file `{path}`: {error}",
            hint=f"remove its item from {manifest} and run `spoor archive` again",
        ) from None
