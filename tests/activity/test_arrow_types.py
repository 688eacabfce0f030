"""Every type that Arrow can build, in every column of an event: a value, or a UsageError that names the row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from activity.errors import UsageError
from activity.settings import EventSettings
from activity.sources import read_events

NOW = 1_800_000_000_000
GOOD: dict[str, Any] = {"user_id": "1", "item_id": "2", "action": "v", "surface": "s", "timestamp": 1_700_000_000_000}
COLUMNS = (*GOOD, "pos")
LARGEST = {32: 2**31 - 1, 64: 2**63 - 1}
REFUSED = None


def plain_arrays() -> Iterator[pa.Array]:
    """One value each: a usual one, and the oddest that the type can hold."""
    for bits in (8, 16, 32, 64):
        for kind in (getattr(pa, f"int{bits}")(), getattr(pa, f"uint{bits}")()):
            yield pa.array([7], kind)
    yield pa.array([2**64 - 1], pa.uint64())
    yield pa.array([np.float16(7)], pa.float16())
    for kind in (pa.float32(), pa.float64()):
        yield from (pa.array([value], kind) for value in (7.0, float("nan"), float("inf")))
    yield from (pa.array([True]), pa.nulls(1))
    for kind in (pa.decimal32, pa.decimal64, pa.decimal128, pa.decimal256):
        yield from (pa.array([Decimal(700)], kind(5, scale)) for scale in (0, 2, -2))
    yield pa.array([Decimal(10**60)], pa.decimal256(76, 0))
    for kind in (pa.string(), pa.large_string(), pa.string_view()):
        yield pa.array(["7"], kind)
        yield invalid(kind)
    for kind in (pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(1)):
        yield from (pa.array([value], kind) for value in (b"7", b"\xff"))
    yield pa.array([b""], pa.binary(0))
    moments = [pa.date32(), pa.date64(), pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")]
    for unit in ("s", "ms", "us", "ns"):
        moments.append(pa.duration(unit))
        moments += [pa.timestamp(unit, zone) for zone in (None, "", "UTC", "+05:00", "+25:99", "Mars/Phobos")]
    for kind in moments:
        stored = pa.int32() if kind.bit_width == 32 else pa.int64()
        yield from (pa.array([value], stored).view(kind) for value in (1, LARGEST[kind.bit_width], None))
    yield from (pa.array([value], pa.month_day_nano_interval()) for value in ((1, 2, 3), None))


def invalid(kind: pa.DataType) -> pa.Array:
    """Text of bytes that are no UTF-8, as casts without checks leave it."""
    stored = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}
    return pa.Array.from_buffers(kind, 1, pa.array([b"\xff"], stored[kind]).buffers())


def nested_arrays() -> Iterator[pa.Array]:
    for values in (pa.array([1]), invalid(pa.string()), pa.array([1], pa.timestamp("ns", "Mars/Phobos"))):
        yield pa.ListArray.from_arrays([0, 1], values)
        yield pa.LargeListArray.from_arrays([0, 1], values)
        yield pa.FixedSizeListArray.from_arrays(values, 1)
        yield pa.ListViewArray.from_arrays([0], [1], values)
        yield pa.LargeListViewArray.from_arrays([0], [1], values)
        yield pa.StructArray.from_arrays([values], ["a"])
        yield pa.StructArray.from_arrays([values, values], ["a", "a"])
        yield pa.MapArray.from_arrays([0, 1], pa.array(["a"]), values)
        yield pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [values])
        yield pa.UnionArray.from_dense(pa.array([0], pa.int8()), pa.array([0], pa.int32()), [values])


def extension_arrays() -> Iterator[pa.Array]:
    for kind, stored in [
        (pa.uuid(), pa.array([b"u" * 16], pa.binary(16))),
        (pa.json_(), pa.array(["{}"])),
        (pa.bool8(), pa.array([1], pa.int8())),
        (pa.opaque(pa.int64(), "a", "b"), pa.array([1])),
        (pa.fixed_shape_tensor(pa.int64(), [1]), pa.array([[1]], pa.list_(pa.int64(), 1))),
    ]:
        yield pa.ExtensionArray.from_storage(kind, stored)


def encoded(array: pa.Array) -> Iterator[pa.Array]:
    yield pa.DictionaryArray.from_arrays(pa.array([0], pa.int8()), array)
    with suppress(pa.ArrowInvalid):  # it looks at the values
        yield pa.RunEndEncodedArray.from_arrays(pa.array([1], pa.int32()), array)


ARRAYS = [*plain_arrays(), *nested_arrays(), *extension_arrays()]
ARRAYS += [each for array in ARRAYS for each in encoded(array)]


def table(name: str, column: pa.Array) -> pa.Table:
    return pa.table({each: [value] for each, value in GOOD.items() if each != name} | {name: column})


def read(source: Any) -> dict[str, Any] | None:
    try:
        events = read_events(source, EventSettings(), now_ms=NOW)
    except UsageError as error:
        place = "row 1, column " in error.message or "cannot read `" in error.message  # Parquet checks some texts
        assert error.hint and place, error.message
        return REFUSED
    events.validate(full=True)
    (row,) = events.to_pylist()
    return row


@pytest.mark.parametrize("name", COLUMNS)
def test_every_type_of_arrow_is_read_or_refused(name: str, tmp_path: Path):
    for array in ARRAYS:
        read(table(name, array))
        try:
            pq.write_table(table(name, array), tmp_path / "e.parquet")
        except (OSError, pa.ArrowException):  # Parquet has no such type
            continue
        read(tmp_path / "e.parquet")


@pytest.mark.parametrize("name", ["user_id", "item_id", "action", "surface"])
@pytest.mark.parametrize("kind", [pa.decimal32(5), pa.decimal64(5), pa.decimal128(5), pa.decimal256(5)])
def test_decimals_of_every_width_are_read_alike(name: str, kind: pa.DataType):
    assert read(table(name, pa.array([Decimal(700)], kind))) == GOOD | {name: "700"}


@pytest.mark.parametrize(
    ("column", "found"),
    [
        (pa.array([2**64 - 1], pa.uint64()), "18446744073709551615"),
        (invalid(pa.string()), r"\udcff"),
        (pa.array([1], pa.timestamp("ms", "Mars/Phobos")), "timestamp[ms, tz=Mars/Phobos]"),
        (pa.array([1]).view(pa.duration("s")), "duration[s]"),
    ],
)
def test_a_pos_that_is_no_int64_is_shown_with_its_row(column: pa.Array, found: str):
    with pytest.raises(UsageError) as refused:
        read_events(table("pos", column), EventSettings(), now_ms=NOW)
    assert "row 1, column pos: found " in refused.value.message and found in refused.value.message


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("value", [Decimal("sNaN"), Decimal("-sNaN123"), Decimal("NaN"), Decimal("Infinity")])
def test_decimals_that_are_no_numbers_are_refused_in_frames(name: str, value: Decimal):
    assert read(pd.DataFrame([GOOD | {name: value}], dtype=object)) is REFUSED


@pytest.mark.parametrize("digits", [999_999, 999_999_999_999])
def test_an_integer_of_endless_digits_is_refused_at_once_with_a_hint_about_its_column(digits: int):
    hints = {}
    for name in GOOD:
        frame = pd.DataFrame([GOOD | {name: Decimal(f"1E+{digits}")}], dtype=object)
        with pytest.raises(UsageError, match=f"found an integer of {digits + 1:,} digits") as refused:
            read_events(frame, EventSettings(), now_ms=NOW)
        hints[name] = refused.value.hint
    assert "events.max_id_bytes" in hints["user_id"] and "events.max_name_bytes" in hints["action"]
    assert "ms since 1970" in hints["timestamp"] and "max_name_bytes" not in hints["timestamp"]
