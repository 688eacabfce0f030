"""`spoor export`: all user embeddings and item vectors as Parquet, for example for a nearest-neighbour index.

    FOLDER/users/<release>/b00-00000.parquet    the store's embeddings of one user bucket, at most PART_ROWS per file
    FOLDER/items/<release>/00000.parquet        the vectors of the release's items
    FOLDER/export.json                          a summary, with the time of the export

Work items are user buckets and releases. The driver first lists the store's users by bucket in files, and a bucket is
read in slices, so memory stays bounded. All files are written beside FOLDER and replace it when they are complete.
"""

from __future__ import annotations

import glob
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from spoor.activity.lake import Lake, open_lake
from spoor.base.errors import UsageError
from spoor.base.files import Manifest, atomic_path, atomic_write, replace_folder, restore_folder, writing
from spoor.base.locks import exclusive
from spoor.batch.jobs import LOCAL, Failures, Runner, run_items
from spoor.batch.progress import progress
from spoor.batch.releases import choose_releases, encoders
from spoor.batch.settings import BatchSettings
from spoor.batch.users.histories import SLICE_USERS
from spoor.batch.users.listing import list_users, listed_users, listing_folder, require_run
from spoor.encoder.release.info import read_info
from spoor.feature_repo.settings import FeatureSettings
from spoor.kernels.settings import KernelSettings
from spoor.store.online import OnlineStore, open_online
from spoor.store.rows import EmbeddingRow

NAMESPACE = "spoor.export"
PART_ROWS = 65_536  # rows per file
SUMMARY = "export.json"
_UNFINISHED = ".unfinished"
What = Literal["both", "users", "items"]
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportedRelease:
    release: str
    dimension: int
    users: int  # with an embedding
    items: int


@dataclass(frozen=True)
class ExportResult:
    """`without_embedding`: pairs of listed user and release without an embedding: deleted, or waiting for a sweep."""

    folder: Path
    what: What
    dry_run: bool
    listed: int  # users in the store, or in the lake if the store cannot list them; 0 for items only
    releases: list[ExportedRelease]  # a dry run counts only items
    without_embedding: int = 0
    files: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class ExportItem:
    """A work item: a bucket's users, for all releases, or one release's items."""

    key: str
    bucket: int = -1
    release: str = ""


def run_export(
    settings: BatchSettings,
    to: Path,
    *,
    releases: Sequence[str] | None = None,
    what: What = "both",
    overwrite: bool = False,
    dry_run: bool = False,
    runner: Runner = LOCAL,
) -> ExportResult:
    """Exports `releases` (default: all live ones) to the folder `to`.

    Raises UsageError (no such release, Feast not applied, a folder that may not be replaced), DataError (damaged
    release), InfrastructureError (store, disk, or another export running).
    """
    started = time.monotonic()
    chosen = choose_releases(settings, releases).chosen
    to = Path(os.path.realpath(to)) if to.is_symlink() else to.absolute()
    check_target(to, overwrite=overwrite)
    with (
        exclusive(settings.state_folder / "jobs" / "export.lock", job="spoor export"),
        listing_folder(settings.state_folder, "export") as work,
    ):
        items = [ExportItem(f"items-{release}", release=release) for release in chosen] if what != "users" else []
        listed = 0
        if what != "items":
            lake = open_lake(settings.lake)
            online = open_online(settings.features)
            online.check(chosen)
            found = list_users(_known_users(online, lake), work / "users", buckets=lake.buckets)
            listed = sum(found.values())
            items += [ExportItem(f"b{bucket:02d}", bucket=bucket) for bucket in found]
        if dry_run:
            known = [_planned(settings, release, what) for release in chosen]
            return ExportResult(to, what, True, listed, known, seconds=time.monotonic() - started)
        _LOG.info("%s to `%s`: %d users listed, %d work items", ", ".join(chosen), to, listed, len(items))
        with _unfinished(to) as unfinished:
            records = _run(settings, items, chosen, work=work, target=unfinished, runner=runner)
            files = len(list(unfinished.rglob("*.parquet")))
            result = replace(_result(records, to, what, listed, chosen, settings), files=files)
            _put_in_place(unfinished, to, result)
    return replace(result, seconds=time.monotonic() - started)


@contextmanager
def _unfinished(to: Path) -> Iterator[Path]:
    """The name of a temporary folder beside `to`, removed after the block; first removes those of killed runs."""
    for left in to.parent.glob(f".{glob.escape(to.name)}.*{_UNFINISHED}"):
        shutil.rmtree(left, ignore_errors=True)
    folder = to.parent / f".{to.name}.{uuid.uuid4().hex}{_UNFINISHED}"
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_target(to: Path, *, overwrite: bool) -> None:
    """Raises UsageError unless `to` is missing or empty, or holds only an earlier export and `overwrite` is set."""
    restore_folder(to)
    if not to.exists() or (to.is_dir() and not any(to.iterdir())):
        return
    if not _is_summary(to / SUMMARY):
        raise UsageError(
            f"`{to}` exists and is no export: it has no {SUMMARY} of one", hint="choose another folder for --to"
        )
    foreign = sorted({path.name for path in to.iterdir()} - {SUMMARY, "users", "items"})
    if foreign:
        raise UsageError(
            f"`{to}` also holds {', '.join(foreign[:3])}, which is no part of an export",
            hint="choose another folder for --to",
        )
    if not overwrite:
        raise UsageError(f"`{to}` holds an earlier export", hint="choose another folder, or give --overwrite")


def _is_summary(path: Path) -> bool:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"exported_at", "releases"} <= content.keys()


@dataclass(eq=False)
class WriteVectors(beam.DoFn):
    """ExportItem → its Parquet files, and its counts in work/manifest; yields the item's key."""

    features: FeatureSettings
    kernels: KernelSettings
    releases: Sequence[str]
    work: Path
    target: Path

    def setup(self) -> None:
        with Failures(self.work).recorded():
            self._online = open_online(self.features)

    def process(self, element: ExportItem) -> Iterator[str]:  # pyright: ignore[reportIncompatibleMethodOverride]
        with Failures(self.work).recorded():
            require_run(self.work)
            record = self._items(element.release) if element.release else self._users(element)
            require_run(self.work)
            Manifest(self.work / "manifest").add(element.key, record)
        yield element.key

    def _users(self, item: ExportItem) -> dict[str, object]:
        users = listed_users(self.work / "users", item.bucket)
        counts: dict[str, int] = {}
        for release in self.releases:
            folder = self.target / "users" / release
            tables = self._embeddings(release, users)
            counts[release] = write_parts(folder, f"{item.key}-", tables)
        return {"users": counts, "missing": len(users) * len(counts) - sum(counts.values())}

    def _embeddings(self, release: str, users: list[str]) -> Iterator[pa.Table]:
        dimension = self._online.dimension(release)
        for start in range(0, len(users), SLICE_USERS):
            rows = self._online.read_embeddings(release, users[start : start + SLICE_USERS])
            yield user_table([row for row in rows if row is not None], dimension)

    def _items(self, release: str) -> dict[str, object]:
        encoder = encoders(self.features, self.kernels, [release])[release]

        def tables() -> Iterator[pa.Table]:
            for start in range(0, len(encoder.item_ids), SLICE_USERS):
                part = slice(start, start + SLICE_USERS)
                vectors = encoder.item_vectors(encoder.item_hashes[part])
                yield item_table(encoder.item_ids[part], vectors, release)

        return {"items": {release: write_parts(self.target / "items" / release, "", tables())}}


def write_parts(folder: Path, prefix: str, tables: Iterator[pa.Table], *, part_rows: int = PART_ROWS) -> int:
    """Writes the tables, one row group each, to files of at most `part_rows` rows (or of one table); without rows, no
    file. Returns the number of rows. Raises InfrastructureError."""
    rows, number = 0, 0
    following = _next_with_rows(tables)
    while following is not None:
        in_file = 0
        with (
            atomic_path(folder / f"{prefix}{number:05d}.parquet") as temporary,
            pq.ParquetWriter(temporary, following.schema, compression="zstd") as writer,
        ):
            while following is not None and (not in_file or in_file + len(following) <= part_rows):
                writer.write_table(following)
                in_file += len(following)
                following = _next_with_rows(tables)
        rows, number = rows + in_file, number + 1
    return rows


def user_table(rows: Sequence[EmbeddingRow], dimension: int) -> pa.Table:
    """Columns user_id, embedding (fixed-size list of `dimension` float32), revision, events used, times in ms, and
    model_version."""
    vectors = np.stack([row.embedding for row in rows]) if rows else np.empty((0, dimension), np.float32)
    numbers = ("revision", "events_used", "event_time_ms", "created_ms", "computed_at_ms")
    columns: dict[str, pa.Array] = {
        "user_id": pa.array([row.user_id for row in rows], pa.string()),
        "embedding": _fixed_size(vectors),
        **{name: pa.array([getattr(row, name) for row in rows], pa.int64()) for name in numbers},
        "model_version": pa.array([row.model_version for row in rows], pa.string()),
    }
    return pa.table(columns)


def item_table(item_ids: Sequence[str], vectors: np.ndarray, release: str) -> pa.Table:
    """Columns item_id, item_embedding (fixed-size list of float32), model_version."""
    columns = {
        "item_id": pa.array(list(item_ids), pa.string()),
        "item_embedding": _fixed_size(vectors),
        "model_version": pa.array([release] * len(item_ids), pa.string()),
    }
    return pa.table(columns)


def _fixed_size(vectors: np.ndarray) -> pa.Array:
    values = pa.array(np.ascontiguousarray(vectors, np.float32).ravel(), pa.float32())
    return pa.FixedSizeListArray.from_arrays(values, vectors.shape[1])


def _next_with_rows(tables: Iterator[pa.Table]) -> pa.Table | None:
    return next((table for table in tables if len(table)), None)


def _known_users(online: OnlineStore, lake: Lake) -> Iterator[str]:
    """The store's users; the lake's if the store cannot list its users."""
    if online.lists_users:
        yield from online.user_ids()
        return
    _LOG.warning("the online store cannot list its users: only those of the lake are exported")
    for table in lake.batches(columns=["user_id"]):
        yield from pc.unique(table["user_id"]).to_pylist()


def _planned(settings: BatchSettings, release: str, what: What) -> ExportedRelease:
    folder = settings.features.releases_folder / release
    items = 0 if what == "users" else pq.read_metadata(folder / "items.parquet").num_rows
    return ExportedRelease(release, read_info(folder).dimension, users=0, items=items)


def _run(
    settings: BatchSettings,
    items: list[ExportItem],
    releases: Sequence[str],
    *,
    work: Path,
    target: Path,
    runner: Runner,
) -> list[dict]:
    manifest = Manifest(work / "manifest")
    if items:
        with progress("export", total=len(items), finished=manifest.keys):
            run_items(
                items,
                WriteVectors(settings.features, settings.kernels, releases, work, target),
                of="work items",
                doing="Write vectors to Parquet",
                runner=runner,
                failures=Failures(work),
                namespace=NAMESPACE,
            )
    return list(manifest.records().values())


def _result(
    records: list[dict], to: Path, what: What, listed: int, releases: Sequence[str], settings: BatchSettings
) -> ExportResult:
    def total(kind: str, release: str) -> int:
        return sum(record.get(kind, {}).get(release, 0) for record in records)

    exported = [
        ExportedRelease(
            release,
            read_info(settings.features.releases_folder / release).dimension,
            users=total("users", release),
            items=total("items", release),
        )
        for release in releases
    ]
    missing = sum(record.get("missing", 0) for record in records)
    return ExportResult(to, what, False, listed, exported, without_embedding=missing)


def _put_in_place(unfinished: Path, to: Path, result: ExportResult) -> None:
    written = [asdict(each) for each in result.releases]
    summary = {
        "exported_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "what": result.what,
        "listed_users": result.listed,
        "releases": written,
    }
    atomic_write(unfinished / SUMMARY, json.dumps(summary, indent=2).encode())
    with writing(to):
        replace_folder(to, unfinished)
