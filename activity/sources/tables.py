"""Rows of a user's files: CSV, TSV, JSON lines and Parquet, compressed or not, or a folder of parts.

Values keep the file's types: text of a CSV, JSON's own types, columns of Parquet. No type is guessed:
activity/fields.py interprets the values. A malformed file is a UsageError with the line or row.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from spoor.activity.json_objects import found_at, parse_object
from spoor.base.errors import EventError, UsageError
from spoor.base.handed_in import foreign_encoding

PIECE_ROWS = 131_072  # rows read at once
_CELL_BYTES = 1 << 24  # of a CSV; a larger cell is an unclosed quote
_LINE_BYTES = 1 << 26  # of a line of JSON
CSV_DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_KINDS = (".jsonl", ".ndjson", ".json")
_PARQUET = (".parquet", ".pq")
_CODECS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}
KINDS = (*_PARQUET[:1], *CSV_DELIMITERS, *JSON_KINDS)


@dataclass(frozen=True)
class Rows:
    """Some rows of a file. `column(name)`: an Arrow array or a list of Python values, None for a missing column;
    `where(row)`: the place of a row, for messages."""

    path: Path
    count: int
    column: Callable[[str], Any]
    where: Callable[[int], str]
    names: tuple[str, ...] | None  # of the columns; None: each row has its own names
    texts: bool = False  # the format has only text


def parts(path: Path) -> list[Path]:
    """The file, or the data files in a folder and its subfolders, sorted by name. Entries that begin with `.` or `_`
    are skipped, links are followed. Raises UsageError for an unknown kind of file, for a folder that is empty or cannot
    be listed, and for a link that is broken or leads back to a folder above it."""
    if not path.is_dir():
        kind(path)
        return [path]
    found = sorted(_files(path, within=()))
    if not found:
        raise UsageError(f"the folder `{path}` holds no data file", hint=f"kinds of files: {', '.join(KINDS)}")
    for part in found:
        kind(part)
    return found


def kind(path: Path) -> str:
    """The file's suffix, without that of compression. Raises UsageError for a kind that cannot be read."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    compressed = suffixes[-1:] and suffixes[-1] in _CODECS
    found = suffixes[-2] if compressed and len(suffixes) == 2 else "" if compressed else "".join(suffixes[-1:])
    if found not in (*_PARQUET, *CSV_DELIMITERS, *JSON_KINDS) or (compressed and found in _PARQUET):
        compression = f"; text also with {', '.join(_CODECS)} behind it" if not compressed else ""
        raise UsageError(f"`{path}`: unknown kind of file", hint=f"use one of {', '.join(KINDS)}{compression}")
    return found


def scan_rows(path: Path, wanted: Callable[[Sequence[str]], Sequence[str]]) -> Iterator[Rows]:
    """The file's rows, PIECE_ROWS at a time and at least once. `wanted` chooses among the column names, if the format
    has them."""
    for part in parts(path):
        suffix = kind(part)
        with reading(part):
            if suffix in _PARQUET:
                yield from _parquet(part, wanted)
            elif suffix in CSV_DELIMITERS:
                yield from _csv(part, wanted, delimiter=CSV_DELIMITERS[suffix])
            else:
                yield from _json(part)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns errors of disk and format into UsageErrors that name the file."""
    try:
        yield
    except (OSError, EOFError, pa.ArrowException) as error:
        hint = "check the path and the file's format"
        raise UsageError(f"cannot read `{path}`: {getattr(error, 'strerror', None) or error}", hint=hint) from None


def count_rows(path: Path) -> int | None:
    """The number of rows of Parquet; None for other kinds, which do not record it."""
    found = parts(path)
    if any(kind(part) not in _PARQUET for part in found):
        return None
    total = 0
    for part in found:
        with reading(part):
            total += pq.read_metadata(part).num_rows
    return total


def open_bytes(path: Path) -> IO[bytes]:
    """The file's bytes, decompressed, without a byte order mark. Raises UsageError for UTF-16 (even without a mark) and
    UTF-32, OSError."""
    codec = _CODECS.get(path.suffix.lower())
    plain: Any = io.FileIO(path) if codec is None else pa.input_stream(str(path), compression=codec)
    stream = io.BufferedReader(plain, 1 << 20)
    start = stream.peek(4)[:4]
    name = foreign_encoding(start)
    if name is None and len(start) > 1 and (start[0] == 0) != (start[1] == 0):  # without a mark
        name = "UTF-16LE" if start[1] == 0 else "UTF-16BE"
    if name is not None:
        raise UsageError(f"`{path}` is {name}", hint=f"write it in UTF-8, e.g. iconv -f {name} -t UTF-8 '{path}'")
    if start.startswith(codecs.BOM_UTF8):
        stream.read(len(codecs.BOM_UTF8))
    return stream


def scan_csv(path: Path, *, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(first line, cells) of each record, the header first. Invalid UTF-8 becomes surrogates. Raises UsageError with
    the line for an unclosed quote and for a record that is longer or shorter than the header."""
    csv.field_size_limit(max(csv.field_size_limit(), _CELL_BYTES))
    with open_bytes(path) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline="")
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        width, line = 0, 1
        try:
            for cells in reader:
                if cells:  # empty lines are skipped
                    width = width or len(cells)
                    if len(cells) != width:
                        message = (
                            f"`{path}`, line {line}: found {len(cells)} columns, expected {width} as in the header"
                        )
                        raise UsageError(message, hint="put text that holds the separator or a line end in quotes")
                    yield line, cells
                line = reader.line_num + 1
        except csv.Error as error:
            message = f"`{path}`, line {line}: a quote that is not closed, or text behind one that is ({error})"
            raise UsageError(message, hint='a quote within a quoted cell is written twice: ""') from None


def scan_json(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, object) of each non-empty line. Raises UsageError with the line."""
    with open_bytes(path) as stream:
        line = 0
        while data := stream.readline(_LINE_BYTES):
            line += 1
            if len(data) == _LINE_BYTES:
                raise UsageError(f"`{path}`, line {line} has {len(data):,} bytes or more", hint="one object a line")
            if not data.strip():
                continue
            try:
                yield line, parse_object(data)
            except EventError as error:
                hint = "one JSON object a line"
                if data.lstrip().startswith(b"["):
                    hint = f"one JSON object a line is read, and no array: jq -c '.[]' '{path}' > events.jsonl"
                raise UsageError(f"`{path}`, line {line}: {error}", hint=hint) from None


def _files(folder: Path, *, within: tuple[Path, ...]) -> Iterator[Path]:
    """`within`: the folders above, with links resolved."""
    with reading(folder):
        within = (*within, folder.resolve())
        for entry in folder.iterdir():
            if entry.name.startswith((".", "_")):
                continue
            if entry.is_symlink():
                _check_link(entry, within)
            if entry.is_dir():
                yield from _files(entry, within=within)
            elif entry.is_file():
                yield entry


def _check_link(link: Path, within: tuple[Path, ...]) -> None:
    if not link.exists():
        raise UsageError(
            f"`{link}` is a link to `{link.readlink()}`, which is not there",
            hint="bring the linked file or folder back, or remove the link",
        )
    target = link.resolve()
    if any(folder.is_relative_to(target) for folder in within):
        raise UsageError(
            f"`{link}` is a link to `{link.readlink()}`, a folder that holds the link",
            hint="remove the link, or let it lead to a folder elsewhere",
        )


def _csv(path: Path, wanted: Callable[[Sequence[str]], Sequence[str]], *, delimiter: str) -> Iterator[Rows]:
    records = scan_csv(path, delimiter=delimiter)
    _, header = next(records, (0, []))
    places = {name: header.index(name) for name in chosen(path, header, wanted)}
    lines: list[int] = []
    rows: list[list[str]] = []
    for line, cells in records:
        lines.append(line)
        rows.append(cells)
        if len(rows) == PIECE_ROWS:
            yield _csv_rows(path, header, places, rows, lines)
            lines, rows = [], []
    yield _csv_rows(path, header, places, rows, lines)


def _csv_rows(path: Path, header: list[str], places: dict[str, int], rows: list[list[str]], lines: list[int]) -> Rows:
    def column(name: str) -> list[str | None] | None:
        if name not in places:
            return None
        place = places[name]
        return [row[place] or None for row in rows]  # an empty cell is a missing value in CSV

    return Rows(path, len(rows), column, lambda row: f"line {lines[row]}", tuple(header), texts=True)


def _json(path: Path) -> Iterator[Rows]:
    lines: list[int] = []
    objects: list[dict[str, Any]] = []
    for line, fields in scan_json(path):
        lines.append(line)
        objects.append(fields)
        if len(objects) == PIECE_ROWS:
            yield _json_rows(path, objects, lines)
            lines, objects = [], []
    yield _json_rows(path, objects, lines)


def _json_rows(path: Path, objects: list[dict[str, Any]], lines: list[int]) -> Rows:
    def column(name: str) -> list[Any]:
        return json_column(path, zip(lines, objects, strict=True), name)

    return Rows(path, len(objects), column, lambda row: f"line {lines[row]}", None)


def json_column(path: Path, rows: Iterable[tuple[int, dict[str, Any]]], name: str) -> list[Any]:
    """The value of each object under this name. `rows`: (line, object). Raises UsageError for a repeated name."""
    found: list[Any] = []
    for line, fields in rows:
        try:
            found.append(found_at(fields, name))
        except EventError as error:
            raise UsageError(f"`{path}`, line {line}: {error}", hint="name each field once") from None
    return found


def _parquet(path: Path, wanted: Callable[[Sequence[str]], Sequence[str]]) -> Iterator[Rows]:
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        taken = list(dict.fromkeys(chosen(path, names, wanted)))
        first = 1
        yield table_rows(file.schema_arrow.empty_table().select(taken), path, names=names, first=first)
        for group in range(file.num_row_groups):  # a reader of all groups would keep the bytes of each
            for batch in file.iter_batches(batch_size=PIECE_ROWS, columns=taken, row_groups=[group]):
                yield table_rows(pa.Table.from_batches([batch]), path, names=names, first=first)
                first += len(batch)


def table_rows(table: pa.Table, path: Path, *, names: Sequence[str], first: int = 1) -> Rows:
    """Rows of a table, numbered from `first`. `names`: all column names of the source."""

    def column(name: str) -> pa.ChunkedArray | None:
        if name in table.column_names:
            return table[name]
        root, *path = name.split(".")
        if not path or root not in table.column_names:
            return None
        found = table[root]
        for part in path:
            if not pa.types.is_struct(found.type) or found.type.get_field_index(part) < 0:
                return None
            found = pc.struct_field(found, part)  # null if the struct is null
        return found

    return Rows(path, len(table), column, lambda row: f"row {first + row}", tuple(names))


def chosen(path: Path, names: Sequence[str], wanted: Callable[[Sequence[str]], Sequence[str]]) -> Sequence[str]:
    """The columns that `wanted` chooses. Raises UsageError if one of them occurs twice."""
    found = wanted(names)
    for name in found:
        if names.count(name) > 1:
            raise UsageError(f"`{path}` has the column {name} {names.count(name)} times", hint="name each column once")
    return found
