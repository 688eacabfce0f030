"""Events from files: Parquet, CSV or JSON lines with the columns user_id, item_id, action, surface, timestamp.

A `pos` column, where there is one, is the place of an event in its user's published sequence. It decides the order:
it breaks ties of equal times, and an event dated before its predecessor is raised to the predecessor's time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from activity.errors import EventError, UsageError
from activity.events import EVENT_SCHEMA, FIELDS, check_time
from activity.hashing import user_hashes
from activity.history import history_values
from activity.settings import EventSettings
from activity.ties import raise_times, shuffle_keys, spread_times

_PIECE_ROWS = 131_072  # rows of a Parquet file read at once
_TEXTS = {name: pa.string() for name in FIELDS if name != "timestamp"}  # guessed types would make 7 of `007`


def _read_csv(path: str) -> pa.Table:
    return pyarrow.csv.read_csv(path, convert_options=pyarrow.csv.ConvertOptions(column_types=_TEXTS))


def _read_json(path: str) -> pa.Table:
    """What looks like a time is read again as text: as a time it would have lost its zone, and as an id its letters."""
    table = pyarrow.json.read_json(path)
    guessed = [field.name for field in table.schema if pa.types.is_timestamp(field.type)]
    if not guessed:
        return table
    texts = pa.schema([pa.field(name, pa.string()) for name in guessed])
    return pyarrow.json.read_json(path, parse_options=pyarrow.json.ParseOptions(explicit_schema=texts))


_READERS = {
    ".parquet": pyarrow.parquet.read_table,
    ".csv": _read_csv,
    ".jsonl": _read_json,
    ".json": _read_json,
}


def read_table(path: Path) -> pa.Table:
    """Any table file, by its suffix. Raises UsageError with the supported kinds."""
    reader = _reader(path)
    try:
        return reader(str(path))
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from None


def scan_events(path: Path, settings: EventSettings, *, now_ms: int) -> Iterator[pa.Table]:
    """The file's events piece by piece in the order of its rows: the columns of EVENT_SCHEMA, and `pos` (int64) if the
    file has it. Parquet is read a piece at a time, other kinds whole.

    Raises UsageError that names the first bad column or row: a file is mended before it is produced, not dead-lettered
    row by row.
    """
    for table in _pieces(path):
        missing = [name for name in FIELDS if name not in table.column_names]
        if missing:
            raise UsageError(
                f"`{path}` has no column {', '.join(missing)}", hint=f"the columns {', '.join(FIELDS)} are needed"
            )
        columns = [
            _times(table["timestamp"], path) if name == "timestamp" else table[name].cast(pa.string())
            for name in FIELDS
        ]
        events = pa.table(columns, names=list(FIELDS))
        _check_rows(events, path, settings, now_ms)
        events = events.cast(EVENT_SCHEMA)
        yield events.append_column("pos", _places(table["pos"], path)) if "pos" in table.column_names else events


def read_events(path: Path, settings: EventSettings, *, now_ms: int, shuffle_ties: int | None = None) -> pa.Table:
    """The file's events as EVENT_SCHEMA, oldest first; a user's equal times keep the order of `pos`, else the file's,
    else (`shuffle_ties`) one drawn from that seed. Times that fall along `pos` are raised. Errors as `scan_events`."""
    events = pa.concat_tables(list(scan_events(path, settings, now_ms=now_ms)) or [EVENT_SCHEMA.empty_table()])
    keys: list[Any] = [np.arange(len(events))]
    users = _user_indexes(events)
    if "pos" in events.column_names:
        places = events["pos"].to_numpy()
        events = _with_times(events, raise_times(users, events["timestamp"].to_numpy(), places)).drop_columns("pos")
        keys.append(places)
    if shuffle_ties is not None:
        distinct = pc.unique(events["user_id"]).to_pylist()
        keys.append(shuffle_keys(user_hashes(distinct)[users], history_values(events), seed=shuffle_ties))
    return events.take(np.lexsort((*keys, events["timestamp"].to_numpy())))


def spread_ties(events: pa.Table, *, resolution_ms: int) -> pa.Table:
    """Events of one user whose times are equal at a coarse resolution (1000 for seconds) are spread over it, in the
    order of the rows: the k-th of m gets k · resolution / m ms more. Order across distinct times is untouched, and
    the times of a user end up distinct."""
    times = events["timestamp"].to_numpy()
    users = _user_indexes(events)
    order = np.lexsort((np.arange(len(times)), times, users))
    spread = np.empty_like(times)
    spread[order] = spread_times(users[order], times[order], resolution=resolution_ms)
    return _with_times(events, spread)


def _reader(path: Path) -> Callable[[str], pa.Table]:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"`{path}`: unknown kind of file", hint=f"use one of {', '.join(_READERS)}")
    return reader


def _unreadable(path: Path, error: Exception) -> UsageError:
    return UsageError(f"cannot read `{path}`: {error}", hint="check the path and the file's format")


def _pieces(path: Path) -> Iterator[pa.Table]:
    if path.suffix.lower() != ".parquet":
        yield read_table(path)
        return
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            wanted = [name for name in (*FIELDS, "pos") if name in names]
            yield file.schema_arrow.empty_table().select(wanted)  # so that missing columns are found in empty files too
            for group in range(file.num_row_groups):  # one reader of all keeps the bytes of every group it has read
                for batch in file.iter_batches(batch_size=_PIECE_ROWS, columns=wanted, row_groups=[group]):
                    yield pa.Table.from_batches([batch])
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from None


def _user_indexes(events: pa.Table) -> npt.NDArray[np.int64]:
    """int64[N]: users numbered in the order of their first row."""
    distinct = pc.unique(events["user_id"])
    return pc.index_in(events["user_id"], value_set=distinct).to_numpy().astype(np.int64)


def _with_times(events: pa.Table, times: npt.NDArray[np.int64]) -> pa.Table:
    return events.set_column(
        events.schema.get_field_index("timestamp"), EVENT_SCHEMA.field("timestamp"), pa.array(times)
    )


def _places(column: pa.ChunkedArray, path: Path) -> pa.ChunkedArray:
    if not pa.types.is_integer(column.type) or column.null_count:
        raise UsageError(
            f"`{path}`: column pos is {column.type} with {column.null_count} empty values",
            hint="pos is the place of an event in its user's sequence: an integer in every row",
        )
    return column.cast(pa.int64())


def _times(column: pa.ChunkedArray, path: Path) -> pa.ChunkedArray:
    """int64 ms from integers, timestamps with a zone, or ISO 8601 text with a zone."""
    if pa.types.is_null(column.type):  # no rows, or no value in any: what `_check_rows` tells
        return column.cast(pa.int64())
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
