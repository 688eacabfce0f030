"""Every type that Arrow can build, in every column of an event: a value, or a UsageError that names the row."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spoor.activity.settings import EventSettings
from spoor.activity.sources.event_files import read_events
from spoor.base.errors import UsageError
from tests.arrow_types import ARRAYS, invalid_text

NOW = 1_800_000_000_000
GOOD: dict[str, Any] = {"user_id": "1", "item_id": "2", "action": "v", "surface": "s", "timestamp": 1_700_000_000_000}
COLUMNS = (*GOOD, "pos")
REFUSED = None


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
        (invalid_text(pa.string()), r"\udcff"),
        (pa.array([1], pa.timestamp("ms", "Mars/Phobos")), "timestamp[ms, tz=Mars/Phobos]"),
        (pa.array([1]).view(pa.duration("s")), "duration[s]"),
    ],
)
def test_a_pos_that_is_no_int64_is_shown_with_its_row(column: pa.Array, found: str):
    with pytest.raises(UsageError) as refused:
        read_events(table("pos", column), EventSettings(), now_ms=NOW)
    assert "row 1, column pos: found " in refused.value.message and found in refused.value.message
    assert "expected a 64-bit integer" in refused.value.message


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
