"""The features that a company has without Spoor: counts and rates per user and item, from the lake.

A row with event_timestamp T (a UTC midnight) counts events *before* T. Rows exist only where a count changes: the day
after an event, and when a day leaves a window. Feast's point-in-time read takes the newest row at or before its time,
so the result equals one row per key and day. Plain Feast loads the online values:
`feast materialize --views user_activity --views item_activity START END`.

    OFFLINE/user_activity/day=1998-03-01/activity.parquet    one file per month, under its first day
    OFFLINE/item_activity/day=1998-03-01/activity.parquet
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

from spoor.activity.lake import Lake
from spoor.base.errors import DataError
from spoor.base.files import atomic_path
from spoor.feature_repo.definitions import source_folder
from spoor.feature_repo.names import ITEM_ACTIVITY, USER_ACTIVITY
from spoor.feature_repo.settings import FeatureSettings, IdType
from spoor.store.offline import int64_ids, open_offline

_DAY_MS = 86_400_000
_TIME = pa.timestamp("us", "UTC")
# A day's count enters every window at the next midnight and leaves a window of n days n midnights later. Running sums
# over these changes give the counts at every midnight, without a row per key and day.
_CHANGES = """
    CREATE OR REPLACE TEMP TABLE rows AS
    WITH daily AS (
        SELECT {key} AS key, timestamp // {day_ms} AS day, count(*) AS events,
               count(*) FILTER (len($positive) = 0 OR list_contains($positive, action)) AS positives
        FROM events GROUP BY ALL
    ), newcomers AS (
        SELECT key, day, count(*) AS others FROM (
            SELECT {key} AS key, {other} AS other, min(timestamp) // {day_ms} AS day FROM events GROUP BY ALL
        ) GROUP BY ALL
    ), changes AS (
        SELECT key, day + 1 AS as_of, events AS total, events AS d7, events AS d28, positives, 0 AS others FROM daily
        UNION ALL SELECT key, day + 8, 0, -events, 0, 0, 0 FROM daily
        UNION ALL SELECT key, day + 29, 0, 0, -events, 0, 0 FROM daily
        UNION ALL SELECT key, day + 1, 0, 0, 0, 0, others FROM newcomers
    )
    SELECT key, as_of,
           (sum(sum(total)) OVER known)::BIGINT AS total,
           (sum(sum(others)) OVER known)::BIGINT AS others,
           (sum(sum(d7)) OVER known)::BIGINT AS d7,
           (sum(sum(d28)) OVER known)::BIGINT AS d28,
           (sum(sum(positives)) OVER known / sum(sum(total)) OVER known)::FLOAT AS positive_rate,
           strftime(DATE '1970-01-01' + as_of::INTEGER, '%Y-%m-01') AS month
    FROM changes WHERE as_of <= $last GROUP BY key, as_of
    WINDOW known AS (PARTITION BY key ORDER BY as_of)
"""


@dataclass(frozen=True)
class ActivityWritten:
    users: int  # users with at least one row
    items: int
    user_rows: int
    item_rows: int
    as_of_ms: int  # newest possible event_timestamp of a row, a midnight; 0 for an empty lake


@dataclass(frozen=True)
class _View:
    name: str
    key: str  # column of the events
    other: str  # column whose distinct values `others` counts
    join_key: str
    id_type: IdType
    columns: dict[str, str]  # column of `rows` → Feast's field


def write_existing_features(
    lake: Lake, features: FeatureSettings, *, positive_actions: Sequence[str] = ()
) -> ActivityWritten:
    """Recomputes both tables from the whole lake and replaces their files one by one, each atomically.

    `positive_actions`: actions counted in the positive rate; empty = every action. Duplicate events count once.
    Raises DataError (an id that does not fit the entity's type, a damaged lake file) and InfrastructureError.
    """
    files = [str(path) for path in lake.files()]
    open_offline(features).prepare_examples((USER_ACTIVITY, ITEM_ACTIVITY))  # Feast cannot read an empty folder
    with duckdb.connect() as connection:
        counts: dict[str, tuple[int, int]] = {}
        last = _load_events(connection, files) if files else 0
        for view in _views(features):
            folder = source_folder(features, view.name)
            if files:
                query = _CHANGES.format(key=view.key, other=view.other, day_ms=_DAY_MS)
                connection.execute(query, {"positive": list(positive_actions), "last": last})
                counts[view.name] = _write_months(connection, view, folder)
            else:
                _remove_months(folder, keep=set())
    users, user_rows = counts.get(features.named(USER_ACTIVITY), (0, 0))
    items, item_rows = counts.get(features.named(ITEM_ACTIVITY), (0, 0))
    return ActivityWritten(users, items, user_rows, item_rows, last * _DAY_MS)


def _views(features: FeatureSettings) -> tuple[_View, _View]:
    counts = {"total": "events_total", "d7": "events_7d", "d28": "events_28d", "positive_rate": "positive_rate"}
    user_columns = {column: f"user_{field}" for column, field in counts.items()}
    item_columns = {column: f"item_{field}" for column, field in counts.items()} | {"others": "item_users_total"}
    return (
        _View(
            features.named(USER_ACTIVITY),
            "user_id",
            "item_id",
            features.user_join_key,
            features.user_id_type,
            user_columns,
        ),
        _View(
            features.named(ITEM_ACTIVITY),
            "item_id",
            "user_id",
            features.item_join_key,
            features.item_id_type,
            item_columns,
        ),
    )


def _load_events(connection: duckdb.DuckDBPyConnection, files: list[str]) -> int:
    """Fills table `events` and returns the newest midnight that is over, in days since 1970."""
    try:
        connection.register(
            "lake", pyarrow.dataset.dataset(files, format="parquet")
        )  # DuckDB's own reader would expand patterns in paths
        connection.execute(
            "CREATE TEMP TABLE events AS SELECT DISTINCT user_id, item_id, action, surface, timestamp FROM lake"
        )
        connection.unregister("lake")
    except (duckdb.Error, OSError, pa.ArrowException) as error:
        raise DataError(f"cannot read the lake: {error}", hint="run `spoor archive` again") from None
    row = connection.execute(f"SELECT max(timestamp) // {_DAY_MS} FROM events").fetchone()
    return int(row[0]) if row and row[0] is not None else 0


def _write_months(connection: duckdb.DuckDBPyConnection, view: _View, folder: Path) -> tuple[int, int]:
    """Writes one file per month of `as_of`. Returns the number of keys and of rows."""
    months = [row[0] for row in connection.execute("SELECT DISTINCT month FROM rows ORDER BY month").fetchall()]
    for month in months:
        selected = connection.sql(
            "SELECT * FROM rows WHERE month = $month ORDER BY key, as_of", params={"month": month}
        )
        with atomic_path(folder / f"day={month}" / "activity.parquet") as temporary:
            pq.write_table(_feast_rows(selected.to_arrow_table(), view), temporary, compression="zstd")
    _remove_months(folder, keep={f"day={month}" for month in months})
    keys, rows = connection.execute("SELECT count(DISTINCT key), count(*) FROM rows").fetchall()[0]
    return int(keys), int(rows)


def _feast_rows(rows: pa.Table, view: _View) -> pa.Table:
    """`rows` with the column names of the Feast definitions."""
    keys = rows["key"]
    if view.id_type == "int64":
        keys = int64_ids(keys, view.key)
    days = rows["as_of"].cast(pa.int64()).to_numpy()
    times = pa.array(days * (_DAY_MS * 1000), pa.int64()).cast(_TIME)
    names = [view.join_key, "event_timestamp", "created_timestamp", *view.columns.values()]
    return pa.table([keys, times, times, *(rows[column] for column in view.columns)], names=names)


def _remove_months(folder: Path, *, keep: set[str]) -> None:
    """Removes files of months without rows, after the new files are written."""
    for path in folder.glob("day=*/activity.parquet"):
        if path.parent.name not in keep:
            path.unlink()
