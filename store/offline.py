"""The offline log: what was computed and when it could be known, in Parquet that Feast reads.

    FOLDER/<view>/day=2026-01-31/<item>.parquet     day = the UTC day of created_timestamp
    FOLDER/<view>/day=1970-01-01/schema.parquet     no rows: so that Feast can read a view before its first row
    FOLDER/_manifest/<view>/<item>.json             one per finished work item: its files and rows

Files are whole or absent and named after their work item, so repeating an item replaces its files, those of an attempt
that was interrupted too. Every file of a view lies in a folder of the one partition column `day`: DuckDB, dask, pyarrow
and Spark read such a folder, and dask and Spark no other that has folders in it.
"""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from feast.repo_config import RepoConfig

from spoor.activity.fields import is_int64
from spoor.base.errors import DataError
from spoor.base.files import Manifest, atomic_path, writing
from spoor.feature_repo.activity_views import ITEM_ACTIVITY_FIELDS, USER_ACTIVITY_FIELDS
from spoor.feature_repo.definitions import source_folder
from spoor.feature_repo.names import USER_ACTIVITY, USER_HISTORY, item_embedding_view, user_embedding_view
from spoor.feature_repo.releases import live_releases
from spoor.feature_repo.settings import FeatureSettings
from spoor.store.rows import (
    EMBEDDING_LOG_SCHEMA,
    HISTORY_LOG_SCHEMA,
    ITEM_LOG_SCHEMA,
    TIME_FIELDS,
    EmbeddingRow,
    UserWrite,
    embedding_log_table,
    history_log_table,
    times,
)

USE_DUCKDB = "set offline_store: {type: duckdb} in feature_store.yaml"
SCHEMA_FILE = "day=1970-01-01/schema.parquet"  # below the folder of a view
_EPOCH_DAY = datetime(1970, 1, 1, tzinfo=UTC)
_DAY_US = 86_400_000_000
_log = logging.getLogger(__name__)
_ARROW = {"Int64": pa.int64(), "Float32": pa.float32(), "String": pa.string()}


def open_offline(features: FeatureSettings) -> OfflineLog:
    return OfflineLog(features)


class OfflineLog:
    """Ids are strings here, and of the entity's type and under its join key in the files."""

    def __init__(self, features: FeatureSettings) -> None:
        self.features = features
        self.folder = features.offline_folder

    def prepare(self, examples: Iterable[str] = ()) -> None:
        """Writes the empty schema file of every view that the definitions have, and of these `examples`
        (`user_activity`, `item_activity`); brings a log of the earlier layout into this one. Raises
        InfrastructureError."""
        named = self.features.named
        upgrade_layout(self.folder)
        self._prepare(named(USER_HISTORY), HISTORY_LOG_SCHEMA)
        for release in live_releases(self.features.releases_folder):
            self._prepare(named(user_embedding_view(release.name)), EMBEDDING_LOG_SCHEMA)
            self._prepare(named(item_embedding_view(release.name)), ITEM_LOG_SCHEMA)
        self.prepare_examples(examples)

    def prepare_examples(self, views: Iterable[str]) -> None:
        """As `prepare`, of the views of a company's own features alone."""
        for view in views:
            self._prepare(self.features.named(view), activity_log_schema(view))

    def write_embeddings(self, release: str, item_key: str, rows: Sequence[EmbeddingRow]) -> None:
        """Replaces the rows of the work item. Raises InfrastructureError."""
        self.write_rows(self.features.named(user_embedding_view(release)), item_key, embedding_log_table(rows))

    def write_histories(self, item_key: str, writes: Sequence[UserWrite]) -> None:
        self.write_rows(self.features.named(USER_HISTORY), item_key, history_log_table(writes))

    def write_items(
        self, release: str, item_key: str, item_ids: Sequence[str], vectors: npt.NDArray[np.float32], created_ms: int
    ) -> None:
        """vectors float32[n, d]: the release's item vectors, known from `created_ms` on."""
        offsets = pa.array(np.arange(len(item_ids) + 1) * vectors.shape[1], pa.int32())
        columns = {
            "item_id": list(item_ids),
            "item_embedding": pa.ListArray.from_arrays(offsets, pa.array(vectors.ravel(), pa.float32())),
            "event_timestamp": times([created_ms] * len(item_ids)),
            "created_timestamp": times([created_ms] * len(item_ids)),
        }
        self.write_rows(
            self.features.named(item_embedding_view(release)), item_key, pa.table(columns, schema=ITEM_LOG_SCHEMA)
        )

    def write_rows(self, view: str, item_key: str, table: pa.Table) -> None:
        """Replaces the rows of a work item of any of Spoor's views. `table` has `user_id` or `item_id`, the features,
        event_timestamp and created_timestamp (UTC, of any unit)."""
        table = _in_microseconds(self._with_entity(table))
        self._prepare(view, table.schema)
        folder = source_folder(self.features, view)
        files = []
        for day, part in _by_day(table):
            name = f"day={day}/{item_key}.parquet"
            with atomic_path(folder / name) as temporary:
                pq.write_table(part, temporary, compression="zstd")
            files.append(name)
        self.manifest(view).add(item_key, {"files": files, "rows": len(table)})
        for path in set(folder.glob(f"day=*/{glob.escape(item_key)}.parquet")) - {folder / name for name in files}:
            path.unlink(missing_ok=True)

    def user_files(self) -> list[Path]:
        """Every file with rows about users: of all views, of releases that are gone too, of what was served
        (store/served.py), and also files that no manifest names, as those of an interrupted job and of
        `user_activity`."""
        roots = [self.folder] if self.features.served_folder is None else [self.folder, self.features.served_folder]
        for root in roots:
            upgrade_layout(root)
        schemas = [path for root in roots for path in sorted(root.glob(f"*/{SCHEMA_FILE}"))]
        folders = [path.parents[1] for path in schemas if self.features.user_join_key in _read(path).column_names]
        return [path for folder in folders for path in sorted(folder.glob("*/[!.]*.parquet")) if path not in schemas]

    def forget(self, path: Path, user_ids: Sequence[str], *, dry_run: bool = False) -> int:
        """Rewrites one of the `user_files` without the rows of these users; returns how many went, or would. Nobody
        else may write it meanwhile. A run that was killed may be repeated. Raises DataError on a damaged file or an id
        that the entity's type cannot hold, InfrastructureError."""
        join_key = self.features.user_join_key
        wanted = self._with_entity(pa.table({"user_id": pa.array(list(user_ids), pa.string())}))[join_key]
        theirs = pc.is_in(_read(path, [join_key])[join_key], value_set=wanted.combine_chunks())
        gone = pc.sum(theirs).as_py() or 0
        if gone and not dry_run:
            kept = _read(path).filter(pc.invert(theirs))
            with atomic_path(path) as temporary:
                pq.write_table(kept, temporary, compression="zstd")
        return gone

    def recount(self) -> None:
        """Brings the manifests' numbers of rows up to date with the files, after `forget`."""
        for manifest in sorted((self.folder / "_manifest").glob("*")):
            for item, record in self.manifest(manifest.name).records().items():
                files = [source_folder(self.features, manifest.name) / name for name in record["files"]]
                rows = sum(pq.read_metadata(path).num_rows for path in files if path.exists())  # retention may prune
                if rows != record["rows"]:
                    self.manifest(manifest.name).add(item, record | {"rows": rows})

    def manifest(self, view: str) -> Manifest:
        return Manifest(self.folder / "_manifest" / view)

    def has(self, view: str, item_key: str) -> bool:
        return self.manifest(view).get(item_key) is not None

    def read(self, view: str) -> pa.Table:
        """Every finished row of a view; an empty table without columns if there never was one."""
        folder = source_folder(self.features, view)
        files = [folder / name for name in self._finished(view)] or [*folder.glob(SCHEMA_FILE)]
        return pa.concat_tables([pq.ParquetFile(path).read() for path in files]) if files else pa.table({})

    def read_day(self, view: str, day: date) -> Iterator[pa.Table]:
        """The finished rows of one UTC day of created_timestamp, one table a file. Raises DataError for a file that the
        manifest names and that cannot be read."""
        for name in self._finished(view):
            if name.startswith(f"day={day.isoformat()}/"):
                path = source_folder(self.features, view) / name
                try:
                    yield pq.ParquetFile(path).read()
                except (OSError, pa.ArrowException) as error:
                    raise DataError(
                        f"`{path}` cannot be read: {error}", hint="restore it from a copy, or write its rows again"
                    ) from None

    def days(self, view: str) -> list[str]:
        """The days that have finished rows, oldest first, e.g. 2026-01-31."""
        return sorted({name.partition("/")[0].removeprefix("day=") for name in self._finished(view)})

    def _finished(self, view: str) -> list[str]:
        """Files of finished work items, `day=…/<item>.parquet`."""
        return [name for record in self.manifest(view).records().values() for name in record["files"]]

    def _prepare(self, view: str, schema: pa.Schema) -> None:
        folder = source_folder(self.features, view)
        upgrade_view(folder)
        if not (folder / SCHEMA_FILE).exists():
            with atomic_path(folder / SCHEMA_FILE) as temporary:
                pq.write_table(_in_microseconds(self._with_entity(schema.empty_table())), temporary)

    def _with_entity(self, table: pa.Table) -> pa.Table:
        """The id column under the entity's join key, with its type. Raises DataError for ids that are no int64."""
        settings = self.features
        for column, join_key, id_type in (
            ("user_id", settings.user_join_key, settings.user_id_type),
            ("item_id", settings.item_join_key, settings.item_id_type),
        ):
            if column not in table.column_names:
                continue
            index = table.column_names.index(column)
            ids = table.column(index)
            if id_type == "int64":
                ids = int64_ids(ids, column)
            table = table.set_column(index, pa.field(join_key, ids.type, nullable=False), ids)
        return table


def warn_of_offline_store(config: RepoConfig) -> None:
    """Warns once a process of an offline store of Feast's that leaves out some point-in-time reads (docs/feast.md)."""
    found = config.offline_config  # none: dask
    _warn(str((found.get("type") if isinstance(found, dict) else getattr(found, "type", found)) or "dask"))


@cache
def _warn(kind: str) -> None:
    if kind == "duckdb":
        return
    problem = "was not tried with Spoor: point-in-time reads of its views need one that reads folders of Parquet files "
    problem += "(FileSource); online reads work with any"
    if kind in ("dask", "file"):
        problem = "reads the offline log, but leaves out rows that repeat a key and time and rows before a key's first "
        problem += "value, and may fail on keys without any"
    _log.warning("Feast's offline store `%s` %s (hint: %s)", kind, problem, USE_DUCKDB)


def int64_ids(ids: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """Ids as text → as an int64 join key holds them. `name`: user_id or item_id. Raises DataError for the first that is
    none: a cast would make 7 of `007`."""
    wrong = next((text for text in ids.unique().to_pylist() if not is_int64(text)), None)
    if wrong is not None:
        raise DataError(
            f"{name}: {wrong!r} is no 64-bit integer in its shortest form",
            hint=f'the entity\'s join key is INT64: set events.{name}_type = "string" if ids are text, or archive into '
            "a new lake, which refuses such ids",
        )
    return ids.cast(pa.int64())


def _read(path: Path, columns: list[str] | None = None) -> pa.Table:
    try:
        return pq.ParquetFile(path).read(columns)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"cannot read `{path}` of the offline log: {error}",
            hint="remove its work item's manifest entry, and run the command that wrote it again",
        ) from None


def upgrade_layout(root: Path) -> None:
    """Moves the files of an earlier layout, `<view>/schema.parquet` and `<view>/month=2026-01/`, into folders by day.
    Each move is atomic; run again, or by two processes, the end is the same. Raises InfrastructureError."""
    for folder in sorted(root.glob("[!._]*")):
        upgrade_view(folder)


def upgrade_view(folder: Path) -> None:
    """The same for the folder of one view."""
    earlier = [(path, folder / SCHEMA_FILE) for path in folder.glob("schema.parquet")]
    earlier += [
        (path, folder / f"day={path.parent.name.removeprefix('month=')}-01" / path.name)
        for path in folder.glob("month=*/[!.]*.parquet")
    ]
    for path, place in earlier:
        with writing(place), suppress(FileNotFoundError):  # another process was faster
            place.parent.mkdir(exist_ok=True)
            os.replace(path, place)
    for month in folder.glob("month=*"):
        with suppress(OSError):  # what is not empty stays
            month.rmdir()


def _in_microseconds(table: pa.Table) -> pa.Table:
    """Times as every reader takes them: frames have nanoseconds, which DuckDB does not cast."""
    for index, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type) and field.type.unit != "us":
            column = table.column(index).cast(pa.timestamp("us", field.type.tz), safe=False)
            table = table.set_column(index, field.with_type(column.type), column)
    return table


def activity_log_schema(view: str) -> pa.Schema:
    """The columns of `user_activity` or `item_activity`."""
    entity, fields = ("user_id", USER_ACTIVITY_FIELDS) if view == USER_ACTIVITY else ("item_id", ITEM_ACTIVITY_FIELDS)
    columns = [pa.field(entity, pa.string(), nullable=False)]
    columns += [pa.field(field.name, _ARROW[str(field.dtype)]) for field in fields]
    return pa.schema([*columns, *TIME_FIELDS])


def _by_day(table: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    created = table["created_timestamp"].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
    days = created // _DAY_US
    for day in np.unique(days):
        name = (_EPOCH_DAY + timedelta(days=int(day))).date().isoformat()
        yield name, table.filter(pa.array(days == day))
