"""Item tables in a memory-mapped file of packed rows: memory grows only with the rows that are read.

    tables.bin     only the rows of all tables (kernels/hashed_gather/layouts.py)
    tables.crc     CRC-32 of every chunk of rows, uint32
    tables.json    layout, sizes, and the packing error of each table

A chunk is checked against its checksum at the first read of one of its rows, so a table of any size serves at once and
a damaged chunk is never used.

Legend: R rows of all tables together, M items, T tables, W floats of a row.
"""

from __future__ import annotations

import json
import mmap
import os
import warnings
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from spoor.base.errors import DataError, InfrastructureError
from spoor.encoder.release.info import ReleaseInfo
from spoor.kernels.hashed_gather.cpu import gather_on_cpu
from spoor.kernels.hashed_gather.layouts import Layout, pack_rows, row_bytes

ROWS_FILE, CHECKSUMS_FILE, RECORD_FILE = "tables.bin", "tables.crc", "tables.json"
_CHUNK_BYTES = 32 * 1024  # maximum; the first row read of a chunk costs reading all of it
_RESTORE = "restore the folder from a copy, or build it again with `spoor release tables build SOURCE NAME --overwrite`"


@dataclass(frozen=True)
class TableRecord:
    """The contents of tables.json. `errors`: each table's relative L2 error against the rows that were packed."""

    layout: Layout
    width: int  # floats of a row
    rows: int  # of all tables together
    tables: int
    row_bytes: int
    chunk_rows: int  # a power of two
    errors: tuple[float, ...]


class PackedTables:
    """Rows of a mapped file. Threads may share it. Runs on the CPU with any backend of attention."""

    def __init__(self, folder: Path) -> None:
        """Reads the record and the checksums, maps the rows. Raises DataError if they do not fit together or a file is
        missing, InfrastructureError if a file cannot be read."""
        self.record = _record(folder)
        self._path = folder / ROWS_FILE
        chunks, expected = -(-self.record.rows // self.record.chunk_rows), self.record.rows * self.record.row_bytes
        try:
            checksums = (folder / CHECKSUMS_FILE).read_bytes()
            self._file = self._path.open("rb")
            found = os.fstat(self._file.fileno()).st_size
            if found != expected or len(checksums) != 4 * chunks:
                raise DataError(
                    f"`{self._path}` has {found:,} bytes and {len(checksums):,} of checksums, "
                    f"expected {expected:,} and {4 * chunks:,}",
                    hint=_RESTORE,
                )
            mapped = mmap.mmap(self._file.fileno(), expected, prot=mmap.PROT_READ)
        except OSError as error:
            raise _unreadable(folder, error) from None
        mapped.madvise(mmap.MADV_RANDOM)  # access is random: no read-ahead
        self._checksums = np.frombuffer(checksums, np.uint32)
        self._chunk_shift = self.record.chunk_rows.bit_length() - 1
        self._whole = np.zeros(chunks, bool)  # chunks that match their checksum
        with warnings.catch_warnings(action="ignore"):  # warns that the mapping is read-only; fine here
            packed = torch.frombuffer(mapped, dtype=torch.uint8)
        self._packed = packed.view(self.record.rows, self.record.row_bytes)

    def gather(self, rows_MT: Tensor) -> Tensor:
        """int64 [M, T] rows to float32 [M, T * W]. Raises DataError for a row in a damaged chunk, IndexError for a row
        out of range."""
        chunks = rows_MT.numpy().ravel() >> self._chunk_shift
        # Clipped: gather_on_cpu raises for a row out of range.
        if not self._whole.take(chunks, mode="clip").all():
            chunks = np.unique(chunks.clip(0, len(self._whole) - 1))
            for chunk in chunks[~self._whole[chunks]].tolist():
                self._verify(chunk)
        return gather_on_cpu(self._packed, rows_MT, width=self.record.width, layout=self.record.layout)

    def verify(self) -> None:
        """Checks every chunk against its checksum. Raises DataError."""
        for chunk in range(len(self._checksums)):
            self._verify(chunk)

    def _verify(self, chunk: int) -> None:
        size = self.record.chunk_rows * self.record.row_bytes
        # Not through the mapping: pages that are only checked would stay in this process's memory.
        if zlib.crc32(os.pread(self._file.fileno(), size, chunk * size)) != self._checksums[chunk]:
            first = chunk * self.record.chunk_rows
            raise DataError(
                f"`{self._path}`: rows {first:,} to {first + self.record.chunk_rows - 1:,} do not match their checksum",
                hint=_RESTORE,
            )
        self._whole[chunk] = True


def open_packed(info: ReleaseInfo, *, known_items: int) -> PackedTables:
    """The packed tables of a release. Raises DataError if they do not fit its model and its number of `known_items`,
    and as PackedTables."""
    tables, model = PackedTables(info.folder), info.model
    found, rows = tables.record, model.hash_functions * model.rows_for(known_items)
    if (found.width, found.tables, found.rows) != (model.table_width, model.hash_functions, rows):
        raise DataError(
            f"release `{info.name}` has {found.tables} tables of {found.rows:,} rows of {found.width} floats together, "
            "which are not its model's",
            hint=_RESTORE,
        )
    return tables


def write_packed(
    folder: Path, parts: Iterable[Tensor], *, rows: int, tables: int, width: int, layout: Layout
) -> TableRecord:
    """Packs float32 parts [*, W], of `rows` rows in total, into the three files, one part at a time.

    Raises DataError for a number that the layout cannot hold; unfinished files then stay in the folder."""
    size = row_bytes(width, layout)
    chunk_rows = 1 << max((_CHUNK_BYTES // size).bit_length() - 1, 0)
    squares = np.zeros((2, tables))  # sums of squares per table: of errors, of rows
    checksums = _Checksums(chunk_rows * size)
    done = 0
    with (folder / ROWS_FILE).open("wb") as file:
        for part in parts:
            try:
                packed = pack_rows(part, layout)
            except ValueError as error:
                raise DataError(str(error), hint="train the release again") from None
            own = torch.arange(len(part))[:, None]
            error = gather_on_cpu(packed, own, width=width, layout=layout) - part
            table = (done + np.arange(len(part))) * tables // rows
            for kind, x in enumerate((error, part)):
                squares[kind] += np.bincount(table, x.square().sum(1).double().numpy(), minlength=tables)
            file.write(packed.numpy().data)
            checksums.add(packed.numpy().tobytes())
            done += len(part)
    if done != rows:
        raise ValueError(f"the parts hold {done} rows, {rows} were announced")
    errors = np.sqrt(squares[0] / np.maximum(squares[1], np.finfo(np.float64).tiny))
    record = TableRecord(layout, width, rows, tables, size, chunk_rows, tuple(errors.tolist()))
    (folder / CHECKSUMS_FILE).write_bytes(checksums.finish().tobytes())
    (folder / RECORD_FILE).write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
    return record


class _Checksums:
    """CRC-32 of every `size` bytes of the added data."""

    def __init__(self, size: int) -> None:
        self._size, self._open, self._current = size, size, 0
        self._found: list[int] = []

    def add(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            piece, view = view[: self._open], view[self._open :]
            self._current = zlib.crc32(piece, self._current)
            self._open -= len(piece)
            if not self._open:
                self._close()

    def finish(self) -> np.ndarray:
        if self._open < self._size:
            self._close()
        return np.array(self._found, np.uint32)

    def _close(self) -> None:
        self._found.append(self._current)
        self._open, self._current = self._size, 0


def _record(folder: Path) -> TableRecord:
    try:
        values = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
        record = TableRecord(**values | {"errors": tuple(values["errors"])})
        counts = (record.width, record.rows, record.tables, record.row_bytes, record.chunk_rows)
        if record.layout not in get_args(Layout):
            raise ValueError(f"unknown layout {record.layout}")
        if not all(type(count) is int and count > 0 for count in counts):
            raise ValueError("its counts are no whole numbers above 0")
        if record.row_bytes != row_bytes(record.width, record.layout) or record.chunk_rows & (record.chunk_rows - 1):
            raise ValueError("sizes do not fit the layout")
        if len(record.errors) != record.tables:
            raise ValueError(f"{len(record.errors)} errors of {record.tables} tables")
        return record
    except OSError as error:
        raise _unreadable(folder, error) from None
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"`{folder / RECORD_FILE}` does not describe packed tables: {error}", hint=_RESTORE) from None


def _unreadable(folder: Path, error: Exception) -> Exception:
    if isinstance(error, FileNotFoundError):
        return DataError(f"file `{error.filename}` is missing", hint=_RESTORE)
    return InfrastructureError(
        f"cannot read packed tables in `{folder}`: {error}", hint="check the disk and the permissions"
    )
