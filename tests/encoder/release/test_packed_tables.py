"""Packed tables in a mapped file: served row by row, checked chunk by chunk."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from spoor.base.errors import DataError
from spoor.encoder.release.packed_tables import PackedTables, TableRecord, write_packed
from spoor.kernels.hashed_gather import Layout, hashed_gather
from spoor.kernels.hashed_gather.layouts import pack_rows

ROWS, WIDTH = 5_000, 32  # five chunks of 1,024 rows as int4, the last one short


def table() -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))


def written(folder: Path, *, layout: Layout = "int4", part: int = 777) -> TableRecord:
    return write_packed(folder, table().split(part), rows=ROWS, tables=2, width=WIDTH, layout=layout)


@pytest.mark.parametrize("layout", ["int4", "int8", "fp16"])
@pytest.mark.parametrize("part", [1, 777, 1024, ROWS])
def test_rows_are_those_that_were_packed_whatever_the_parts(tmp_path: Path, layout: Layout, part: int) -> None:
    written(tmp_path, layout=layout, part=max(part, 50))
    rows = torch.randint(0, ROWS, (300, 2), generator=torch.Generator().manual_seed(1))
    tables = PackedTables(tmp_path)
    expected = hashed_gather(pack_rows(table(), layout), rows, width=WIDTH, layout=layout)
    assert torch.equal(tables.gather(rows), expected)
    tables.verify()


def test_the_error_of_each_table_is_written_down(tmp_path: Path) -> None:
    record = written(tmp_path)
    x = table()
    packed = hashed_gather(pack_rows(x, "int4"), torch.arange(ROWS)[:, None], width=WIDTH, layout="int4")
    for number, half in enumerate((slice(0, ROWS // 2), slice(ROWS // 2, ROWS))):
        expected = float((packed[half] - x[half]).norm() / x[half].norm())
        assert record.errors[number] == pytest.approx(expected, rel=1e-4)
    assert PackedTables(tmp_path).record == record


def test_a_damaged_chunk_is_refused_and_the_others_are_served(tmp_path: Path) -> None:
    record = written(tmp_path)
    data = bytearray((tmp_path / "tables.bin").read_bytes())
    data[(record.chunk_rows * 2 + 5) * record.row_bytes] ^= 1
    (tmp_path / "tables.bin").write_bytes(data)
    tables = PackedTables(tmp_path)
    assert tables.gather(torch.tensor([[0, record.chunk_rows * 3]])).shape == (1, 2 * WIDTH)
    damaged = f"rows {2 * record.chunk_rows:,} to {3 * record.chunk_rows - 1:,} do not match their checksum"
    for _ in range(2):
        with pytest.raises(DataError, match=damaged):
            tables.gather(torch.tensor([[0, record.chunk_rows * 2]]))
    with pytest.raises(DataError, match=damaged):
        tables.verify()


@pytest.mark.parametrize("row", [-1, ROWS])
def test_a_row_that_is_not_there_is_refused(tmp_path: Path, row: int) -> None:
    written(tmp_path)
    with pytest.raises(IndexError, match=f"of a table of {ROWS}"):
        PackedTables(tmp_path).gather(torch.tensor([[0, row]]))


def test_no_rows_are_none(tmp_path: Path) -> None:
    written(tmp_path)
    assert PackedTables(tmp_path).gather(torch.empty(0, 2, dtype=torch.int64)).shape == (0, 2 * WIDTH)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("tables.bin", lambda data: data[:-1], "99,999 bytes and 20 of checksums, expected 100,000 and 20"),
        ("tables.bin", lambda data: b"", "0 bytes"),
        ("tables.crc", lambda data: data[:-4], "16 of checksums, expected 100,000 and 20"),
        ("tables.crc", lambda data: data[:-1], "19 of checksums"),
        ("tables.json", lambda data: data.replace(b"5000", b"5000.0"), "no whole numbers"),
        ("tables.json", lambda data: data.replace(b'"tables": 2', b'"tables": 3'), "2 errors of 3 tables"),
        ("tables.json", lambda data: data.replace(b"1024", b"1000"), "sizes do not fit"),
        ("tables.json", lambda data: b"[]", "does not describe packed tables"),
        ("tables.json", lambda data: b"{", "does not describe packed tables"),
        ("tables.json", lambda data: data.replace(b"int4", b"int2"), "unknown layout int2"),
        ("tables.json", lambda data: data.replace(b"int4", b"int8"), "sizes do not fit"),
    ],
)
def test_files_that_do_not_fit_together_are_refused(tmp_path: Path, name: str, change, message: str) -> None:
    written(tmp_path)
    (tmp_path / name).write_bytes(change((tmp_path / name).read_bytes()))
    with pytest.raises(DataError, match=message) as raised:
        PackedTables(tmp_path)
    assert "spoor release tables build" in raised.value.hint


@pytest.mark.parametrize("name", ["tables.bin", "tables.crc", "tables.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    written(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=f"{name}. is missing"):
        PackedTables(tmp_path)


def test_a_number_that_cannot_be_packed_is_an_error_of_the_data(tmp_path: Path) -> None:
    x = table()
    x[4_000, 3] = float("nan")
    with pytest.raises(DataError, match="not finite"):
        write_packed(tmp_path, x.split(777), rows=ROWS, tables=2, width=WIDTH, layout="int4")
    assert not (tmp_path / "tables.json").exists()


def test_the_record_is_plain_json(tmp_path: Path) -> None:
    written(tmp_path)
    assert json.loads((tmp_path / "tables.json").read_text())["row_bytes"] == 20
