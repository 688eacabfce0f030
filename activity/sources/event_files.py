"""Events from files, folders of files and frames. The columns are user_id, item_id, action, surface and timestamp, or
their names in [events.fields].

An optional `pos` column is the position of an event in its user's published sequence. It decides the order: it breaks
ties of equal times, and an event dated before its predecessor is raised to the predecessor's time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from spoor.activity.events import EVENT_SCHEMA
from spoor.activity.fields import FIELDS, INT64, brief, is_int64
from spoor.activity.hashing import user_hashes
from spoor.activity.history import history_values
from spoor.activity.json_objects import found_at
from spoor.activity.rules import check_time, entity_id, fits
from spoor.activity.settings import EventSettings
from spoor.activity.sources.columns import Column, RowError, convert, decoded, python_values
from spoor.activity.sources.tables import (
    CSV_DELIMITERS,
    JSON_KINDS,
    Rows,
    chosen,
    json_column,
    kind,
    open_bytes,
    parts,
    reading,
    scan_csv,
    scan_json,
    scan_rows,
    table_rows,
)
from spoor.activity.sources.ties import raise_times, shuffle_keys, spread_times
from spoor.base.errors import EventError, UsageError

Frame = Any  # a pandas DataFrame; this room does not import pandas
FRAME = Path("the frame")  # in messages about rows that come from no file
_IDS = ("user_id", "item_id")


def scan_events(
    source: Path | pa.Table | Frame, settings: EventSettings, *, now_ms: int, unfit: list[str] | None = None
) -> Iterator[pa.Table]:
    """Yields the events of a file, a folder of files or a frame, piece by piece in row order: the columns of
    EVENT_SCHEMA, and `pos` (int64) if the source has it.

    Raises UsageError that names the first bad column or row: files are corrected before they are produced, not
    dead-lettered row by row. With `unfit`, a row is skipped if the settings want int64 ids and one of its ids is not;
    its error is appended to `unfit`.
    """
    if isinstance(source, Path):
        pieces = scan_rows(source, lambda names: _wanted(names, settings))
    elif isinstance(source, pa.Table):
        taken = chosen(FRAME, source.column_names, lambda names: _wanted(names, settings))
        pieces = iter([table_rows(source.select(list(dict.fromkeys(taken))), FRAME, names=source.column_names)])
    else:
        pieces = iter([_frame_rows(source, settings)])
    with_places = None
    for rows in pieces:
        events = _events(rows, settings, now_ms) if unfit is None else _fit(rows, settings, now_ms, unfit)
        if not len(events):
            continue
        if with_places not in (None, "pos" in events.column_names):
            raise UsageError(
                f"`{rows.path}`, {rows.where(0)} and the rows before: only some have a pos",
                hint="pos is the place of an event in its user's sequence: an integer in every row, or in none",
            )
        with_places = "pos" in events.column_names
        yield events


def read_events(
    source: Path | pa.Table | Frame,
    settings: EventSettings,
    *,
    now_ms: int,
    shuffle_ties: int | None = None,
    unfit: list[str] | None = None,
) -> pa.Table:
    """The source's events as EVENT_SCHEMA, oldest first. Equal times are ordered by `shuffle_ties` (a seed) if it is
    given, else by `pos`, else by row. Times that fall along `pos` are raised. Errors and `unfit` as `scan_events`."""
    pieces = list(scan_events(source, settings, now_ms=now_ms, unfit=unfit))
    events = pa.concat_tables(pieces or [EVENT_SCHEMA.empty_table()])
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
    """Spreads each user's events of equal time over a coarse resolution (1000 for seconds), in row order: the k-th of m
    gets k · resolution / m ms more. Distinct times keep their order, and the times of a user become distinct."""
    times = events["timestamp"].to_numpy()
    users = _user_indexes(events)
    order = np.lexsort((np.arange(len(times)), times, users))
    spread = np.empty_like(times)
    spread[order] = spread_times(users[order], times[order], resolution=resolution_ms)
    return _with_times(events, spread)


def read_table(path: Path, settings: EventSettings | None = None) -> pa.Table:
    """Reads any table file or folder, for instance of items. The columns user_id and item_id become text by the rules
    of events; other types are inferred if the format has none. Raises UsageError."""
    tables = [_read_part(part, settings or EventSettings()) for part in parts(path)]
    with reading(path):
        return pa.concat_tables(tables, promote_options="permissive")


def id_column(
    column: Column, name: str, settings: EventSettings, *, path: Path = FRAME, where: Callable[[int], str] | None = None
) -> pa.Array:
    """A column of user or item ids (`name`: user_id or item_id) as text, by the rules of events. Raises UsageError."""
    try:
        return convert(column, name, settings)
    except RowError as error:
        place = where(error.row) if where else f"row {error.row + 1}"
        raise _bad_row(path, place, name, error.error) from None


def _read_part(path: Path, settings: EventSettings) -> pa.Table:
    suffix, where = kind(path), lambda row: f"row {row + 1}"
    with reading(path):
        if suffix in CSV_DELIMITERS:
            lines: list[int] = []
            for line, cells in scan_csv(path, delimiter=CSV_DELIMITERS[suffix]):
                if not lines:
                    _check_names(path, cells, "bytes that are no UTF-8")
                lines.append(line)
            lines = lines[1:]
            names, columns, where = *_guessed_csv(path, CSV_DELIMITERS[suffix]), lambda row: f"line {lines[row]}"
        elif suffix in JSON_KINDS:
            rows = list(scan_json(path))
            names, columns, where = *_guessed_json(path, rows), lambda row: f"line {rows[row][0]}"
        else:
            table = pq.ParquetFile(path).read()
            names, columns = table.column_names, table.columns
            for name, column in zip(names, columns, strict=True):
                _check_texts(path, name, column)
    for index, name in enumerate(chosen(path, names, lambda all_of_them: all_of_them)):
        if name in _IDS:
            columns[index] = id_column(columns[index], name, settings, path=path, where=where)
    return pa.table(columns, names=names)


def _guessed_csv(path: Path, delimiter: str) -> tuple[list[str], list[Any]]:
    with open_bytes(path) as stream:
        table = pyarrow.csv.read_csv(
            stream,
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(column_types={name: pa.string() for name in _IDS}),
        )
    for field in table.schema:
        if pa.types.is_binary(field.type):  # Arrow's type for text in another encoding
            raise _no_text(path, field.name, "bytes that are no UTF-8")
    return table.column_names, table.columns


def _guessed_json(path: Path, rows: list[tuple[int, dict[str, Any]]]) -> tuple[list[str], list[Any]]:
    """A column whose values have no common type holds them as JSON."""
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    _check_names(path, names, "an unpaired surrogate")
    columns: list[Any] = []
    for name in names:
        values: Any = json_column(path, rows, name)
        if name not in _IDS:
            try:
                values = pa.array(values)
            except UnicodeEncodeError:
                raise _no_text(path, name, "an unpaired surrogate") from None
            except (pa.ArrowException, OverflowError):
                values = pa.array([None if value is None else json.dumps(value) for value in values])
        columns.append(values)
    return names, columns


def _check_names(path: Path, names: Sequence[str], found: str) -> None:
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise _no_text(path, brief(repr(name)), f"{found} in its name") from None


def _check_texts(path: Path, name: str, column: pa.ChunkedArray) -> None:
    """Checks that text is UTF-8: Parquet's writers need not, and its readers do not."""
    if name in _IDS:
        return  # checked by the rule for ids, which names the row
    try:
        column.validate(full=True)
    except pa.ArrowInvalid as error:
        if "UTF8" in str(error):
            raise _no_text(path, name, "bytes that are no UTF-8") from None


def _no_text(path: Path, name: str, found: str) -> UsageError:
    return UsageError(f"`{path}`, column {name}: found {found}, expected Unicode", hint="write the file in UTF-8")


def _wanted(names: Sequence[str], settings: EventSettings) -> list[str]:
    """The columns of a file with the event's fields, and `pos`."""
    sources = [source if source in names else source.partition(".")[0] for source in settings.source_names]
    return [name for name in dict.fromkeys((*sources, "pos")) if name in names]


def _frame_rows(frame: Frame, settings: EventSettings) -> Rows:
    """A column of Python objects stays a list of values, as it may mix types; other columns become Arrow's."""
    names = [str(name) for name in frame.columns]
    chosen(FRAME, names, lambda names: _wanted(names, settings))

    def column(name: str) -> Column | None:
        root = name if name in names else name.partition(".")[0]
        if root not in names:
            return None
        values = frame.iloc[:, names.index(root)]
        if values.dtype == object:
            found = _frame_values(values)
            return found if root == name else [found_at({root: value}, name) for value in found]
        if root != name:
            return None
        try:
            return pa.chunked_array([pa.array(values, from_pandas=True)])
        except (pa.ArrowException, UnicodeEncodeError):  # a type that Arrow lacks, or invalid Unicode
            return _frame_values(values)

    return Rows(FRAME, len(frame), column, lambda row: f"row {row + 1}", tuple(names))


def _frame_values(column: Any) -> list[Any]:
    try:
        absent = column.isna()
    except InvalidOperation:  # a signalling NaN cannot be compared; it is a value, not a missing one
        absent = column.map(lambda value: 0 if isinstance(value, Decimal) and value.is_snan() else value).isna()
    return [None if missing else value for value, missing in zip(column, absent, strict=True)]


def _events(rows: Rows, settings: EventSettings, now_ms: int) -> pa.Table:
    sources = dict(settings.sources)
    columns = {name: rows.column(source) for name, source in settings.sources}
    missing = [
        source
        for name, source in settings.sources
        if columns[name] is None and not getattr(settings.defaults, name, "")
    ]
    if missing:
        raise UsageError(
            f"`{rows.path}` has no column {', '.join(missing)}; it has {brief(', '.join(rows.names or ()))}",
            hint=f"the columns {', '.join(settings.source_names)} are needed; [events.fields] in the settings names "
            "others",
        )
    found: dict[str, pa.Array] = {}
    refused: list[tuple[int, str, EventError]] = []
    for name, column in columns.items():
        try:
            found[name] = convert([None] * rows.count if column is None else column, name, settings)
            if name == "timestamp":
                _check_times(found[name], settings, now_ms)
        except RowError as error:
            refused.append((error.row, name, error.error))
    if refused:
        row, name, error = min(refused, key=lambda each: each[0])
        raise _bad_row(rows.path, rows.where(row), sources[name], error)
    events = pa.table([found[name] for name in FIELDS], schema=EVENT_SCHEMA)
    places = rows.column("pos") if rows.names is not None and "pos" in rows.names else _json_places(rows)
    return events if places is None else events.append_column("pos", _places(places, rows))


def _fit(rows: Rows, settings: EventSettings, now_ms: int, unfit: list[str]) -> pa.Table:
    """The events whose ids have the configured types; the error of each other row goes to `unfit`."""
    events = _events(rows, replace(settings, user_id_type="string", item_id_type="string"), now_ms)
    wrong: dict[int, str] = {}
    for name, source in settings.sources[: len(_IDS)]:
        distinct = pc.unique(events[name])
        odd = [text for text in distinct.to_pylist() if not fits(text, name, settings)]
        for row in pc.indices_nonzero(pc.is_in(events[name], pa.array(odd, pa.string()))).to_pylist() if odd else ():
            try:
                entity_id(events[name][row].as_py(), name, settings)
            except EventError as error:
                wrong.setdefault(row, _bad_row(rows.path, rows.where(row), source, error).message)
    unfit += [wrong[row] for row in sorted(wrong)]
    return events.filter(pa.array([row not in wrong for row in range(len(events))])) if wrong else events


def _check_times(times: pa.Array, settings: EventSettings, now_ms: int) -> None:
    """Raises RowError for the first time out of range."""
    numbers = times.to_numpy()
    if not len(numbers):
        return
    for extreme in (numbers.min(), numbers.max()):
        try:
            check_time(int(extreme), append_time_ms=now_ms, settings=settings)
        except EventError:
            for row, number in enumerate(numbers.tolist()):
                try:
                    check_time(number, append_time_ms=now_ms, settings=settings)
                except EventError as error:
                    raise RowError(row, error) from None


def _bad_row(path: Path, where: str, source: str, error: EventError) -> UsageError:
    name = f"column {source}" if source == error.field else f"column {source} ({error.field})"
    hints = {
        "timestamp": "times are ms since 1970 in UTC, or ISO 8601 with a zone: 2026-01-31T00:00:00Z",
        "item_id": "ids are text or integers; write others as text",
        "user_id": "ids are text or integers; write others as text",
    }
    hint = hints.get(error.field, "names are text or integers")
    if error.reason == "missing-field":
        hint = f"every event has a value of {source}" + (
            f", or set events.defaults.{error.field}" if error.field in ("action", "surface") else ""
        )
    elif error.reason == "bad-length" and error.field != "timestamp":
        limit = "events.max_id_bytes" if error.field.endswith("_id") else "events.max_name_bytes"
        hint = f"empty text is no value, and {limit} is the limit"
    elif error.reason == "bad-text":
        hint = "write the file in UTF-8, and remove what is no character of a name"
    elif "int64" in error.expected:
        hint = f'set events.{error.field}_type = "string" if ids are text'
    return UsageError(f"`{path}`, {where}, {name}: found {error.found}, expected {error.expected}", hint=hint)


def _user_indexes(events: pa.Table) -> npt.NDArray[np.int64]:
    """int64[N]: user indexes, numbered by first row."""
    distinct = pc.unique(events["user_id"])
    return pc.index_in(events["user_id"], value_set=distinct).to_numpy().astype(np.int64)


def _with_times(events: pa.Table, times: npt.NDArray[np.int64]) -> pa.Table:
    return events.set_column(
        events.schema.get_field_index("timestamp"), EVENT_SCHEMA.field("timestamp"), pa.array(times)
    )


def _json_places(rows: Rows) -> Column | None:
    """`pos` of JSON objects; None if no object has it."""
    values = rows.column("pos") if rows.names is None else None
    return None if values is None or all(value is None for value in values) else values


def _places(column: Column, rows: Rows) -> pa.Array:
    """`pos` as int64, an integer in every row; its digits in formats that have only text. Raises UsageError."""
    if isinstance(column, pa.ChunkedArray):
        plain = decoded(column)
        if pa.types.is_integer(plain.type) and not plain.null_count:
            try:
                return plain.cast(pa.int64()).combine_chunks()
            except pa.ArrowInvalid:  # beyond int64: the loop below names the row
                pass
        values = python_values(plain, "pos")
    else:
        values = list(column)
    for row, value in enumerate(values):
        number = int(value) if rows.texts and isinstance(value, str) and is_int64(value) else value
        if type(number) is not int or number not in INT64:
            raise UsageError(
                f"`{rows.path}`, {rows.where(row)}, column pos: found {brief(repr(value))}, expected a 64-bit integer",
                hint="pos is the place of an event in its user's sequence: an integer in every row",
            )
        values[row] = number
    return pa.array(values, pa.int64())
