"""Events from files: Parquet, CSV or JSON lines with the columns user_id, item_id, action, surface, timestamp.

A `pos` column, where there is one, breaks ties of a user's equal times in the published order.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from activity.errors import EventError, UsageError
from activity.events import EVENT_SCHEMA, FIELDS, check_time
from activity.settings import EventSettings

_READERS = {
    ".parquet": pyarrow.parquet.read_table,
    ".csv": pyarrow.csv.read_csv,
    ".jsonl": pyarrow.json.read_json,
    ".json": pyarrow.json.read_json,
}


def read_table(path: Path) -> pa.Table:
    """Any table file, by its suffix. Raises UsageError with the supported kinds."""
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"`{path}`: unknown kind of file", hint=f"use one of {', '.join(_READERS)}")
    try:
        return reader(str(path))
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"cannot read `{path}`: {error}", hint="check the path and the file's format") from None


def read_events(path: Path, settings: EventSettings, *, now_ms: int) -> pa.Table:
    """The file's events as EVENT_SCHEMA, oldest first; a user's equal times keep the order of `pos`, else the file's.

    Raises UsageError that names the first bad column or row: a file is mended before it is produced, not dead-lettered
    row by row.
    """
    table = read_table(path)
    missing = [name for name in FIELDS if name not in table.column_names]
    if missing:
        raise UsageError(
            f"`{path}` has no column {', '.join(missing)}", hint=f"the columns {', '.join(FIELDS)} are needed"
        )
    order = [("timestamp", "ascending")] + [("pos", "ascending")] * ("pos" in table.column_names)
    table = table.append_column("_row", pa.array(np.arange(len(table))))
    columns = [
        _times(table["timestamp"], path) if name == "timestamp" else table[name].cast(pa.string()) for name in FIELDS
    ]
    events = pa.table(columns, names=list(FIELDS)).append_column("_row", table["_row"])
    if "pos" in table.column_names:
        events = events.append_column("pos", table["pos"])
    events = events.sort_by([*order, ("_row", "ascending")]).select(list(FIELDS))
    _check_rows(events, path, settings, now_ms)
    return events.cast(EVENT_SCHEMA)


def spread_ties(events: pa.Table, *, resolution_ms: int) -> pa.Table:
    """Events of one user whose times are equal at a coarse resolution (1000 for seconds) are spread over it, in the
    order of the rows: the k-th of m gets k · resolution / m ms more. Order across distinct times is untouched."""
    times = events["timestamp"].to_numpy()
    users = events["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    order = np.lexsort((np.arange(len(times)), times, users))
    new_group = np.ones(len(times), bool)
    new_group[1:] = (np.diff(users[order]) != 0) | (np.diff(times[order]) != 0)
    starts = np.flatnonzero(new_group)
    sizes = np.diff(np.append(starts, len(times)))
    rank = np.arange(len(times)) - np.repeat(starts, sizes)
    spread = np.empty_like(times)
    spread[order] = times[order] + rank * resolution_ms // np.maximum(np.repeat(sizes, sizes), 1)
    return events.set_column(
        events.schema.get_field_index("timestamp"), EVENT_SCHEMA.field("timestamp"), pa.array(spread)
    )


def _times(column: pa.ChunkedArray, path: Path) -> pa.ChunkedArray:
    """int64 ms from integers, timestamps with a zone, or ISO 8601 text with a zone."""
    try:
        if pa.types.is_integer(column.type):
            return column.cast(pa.int64())
        if pa.types.is_timestamp(column.type) and column.type.tz is not None:
            return column.cast(pa.timestamp("ms", "UTC"), safe=False).cast(pa.int64())
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            parsed = pc.strptime(pc.replace_substring(column, "Z", "+0000"), "%Y-%m-%dT%H:%M:%S%z", "ms")
            return parsed.cast(pa.int64())
    except pa.ArrowException as error:
        raise UsageError(f"`{path}`: column timestamp: {error}", hint="use ms since 1970 (UTC)") from None
    raise UsageError(
        f"`{path}`: column timestamp is {column.type}", hint="use ms since 1970 (UTC), or times with a zone"
    )


def _check_rows(events: pa.Table, path: Path, settings: EventSettings, now_ms: int) -> None:
    for name in FIELDS:
        if events[name].null_count:
            raise UsageError(f"`{path}`: column {name} has {events[name].null_count} empty values")
    for name in FIELDS[:4]:
        limit = settings.max_id_bytes if name.endswith("_id") else settings.max_name_bytes
        sizes = pc.binary_length(events[name])
        if len(events) and not (pc.min(sizes).as_py() >= 1 and pc.max(sizes).as_py() <= limit):
            raise UsageError(f"`{path}`: column {name} holds text that is not 1 to {limit} bytes long")
    for extreme in (pc.min, pc.max):
        if len(events):
            try:
                check_time(extreme(events["timestamp"]).as_py(), append_time_ms=now_ms, settings=settings)
            except EventError as error:
                raise UsageError(f"`{path}`: {error}", hint="timestamps are ms since 1970 in UTC") from None
