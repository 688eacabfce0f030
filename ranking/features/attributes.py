"""Item attributes as numbers: the only features of a new item before its first event.

A list of texts, or a text column with few distinct values, becomes one column per value. A number or boolean becomes
its standard score; a time (a timestamp, or ms in a column ending in `_at` or `_seen`) its standard score, day of week
and hour. Ids, free text and constant columns are left out. The layout lists the columns; it is computed from the items
of the training window and saved with the ranker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from spoor.activity.settings import EventSettings
from spoor.activity.sources.columns import decoded
from spoor.activity.sources.event_files import id_column
from spoor.base.errors import UsageError

Floats = npt.NDArray[np.float32]

_MAX_VALUES = 64  # most distinct values of a text column
_CLIP = 4.0  # standard deviations
_DAY_MS, _HOUR_MS = 86_400_000, 3_600_000


@dataclass(frozen=True)
class Attribute:
    """One column of the table: known `values` for texts, mean and deviation for numbers and times."""

    name: str
    kind: Literal["texts", "number", "time"]
    values: tuple[str, ...] = ()
    mean: float = 0.0
    deviation: float = 1.0

    @property
    def width(self) -> int:
        return len(self.values) if self.kind == "texts" else {"number": 1, "time": 5}[self.kind]


@dataclass(frozen=True)
class AttributeLayout:
    attributes: tuple[Attribute, ...] = ()

    @classmethod
    def of(cls, items: pa.Table, *, known: Sequence[str]) -> AttributeLayout:
        """The layout of a table with `item_id` and any other columns, from the rows of `known` items only. Raises
        UsageError for a table without item_id."""
        seen = pc.is_in(_ids(items), value_set=pa.array(known, pa.string()))
        found = [_attribute(name, items[name], seen) for name in items.column_names if name != "item_id"]
        return cls(tuple(attribute for attribute in found if attribute is not None))

    @property
    def width(self) -> int:
        """A, the number of floats per item."""
        return sum(attribute.width for attribute in self.attributes)

    def matrix(self, items: pa.Table, item_ids: Sequence[str]) -> Floats:
        """float32 [n, A]; zeros for items missing from the table. Raises UsageError for a table without
        item_id or one of the layout's columns, or with texts in place of numbers or the reverse."""
        place = {item: row for row, item in enumerate(_ids(items).to_pylist())}
        missing = [attribute.name for attribute in self.attributes if attribute.name not in items.column_names]
        if missing:
            raise UsageError(
                f"the table of items has no column {', '.join(missing)}, found {', '.join(items.column_names)}",
                hint="give the attributes that the ranker was trained with",
            )
        rows = np.array([place.get(item, len(items)) for item in item_ids], np.int64)
        columns = [_numbers(attribute, items[attribute.name]) for attribute in self.attributes]
        known = np.concatenate([np.zeros((len(items), 0), np.float32), *columns], 1)
        return np.concatenate([known, np.zeros((1, self.width), np.float32)])[rows]

    def to_json(self) -> list[dict[str, Any]]:
        return [asdict(attribute) for attribute in self.attributes]

    @classmethod
    def from_json(cls, record: list[dict[str, Any]]) -> AttributeLayout:
        return cls(tuple(replace(Attribute(**entry), values=tuple(entry["values"])) for entry in record))


def _attribute(name: str, column: pa.ChunkedArray, seen: pa.ChunkedArray) -> Attribute | None:
    """Computed from the rows that are `seen`. None for a column without information."""
    column = _plain(column)
    kind = column.type
    if _holds_texts(kind):
        values = sorted({value for texts in _texts(name, column.filter(seen)) for value in texts})
        return Attribute(name, "texts", tuple(values)) if 2 <= len(values) <= _MAX_VALUES else None
    if _holds_numbers(kind):
        numbers = _floats(column.filter(seen))
        numbers = numbers[np.isfinite(numbers)]
        with np.errstate(over="ignore", invalid="ignore"):  # overflows for values near the largest float
            mean, deviation = (float(numbers.mean()), float(numbers.std())) if len(numbers) else (0.0, 0.0)
        if deviation == 0 or not np.isfinite(deviation):
            return None
        time = pa.types.is_timestamp(kind) or name.endswith(("_at", "_seen"))
        return Attribute(name, "time" if time else "number", (), mean, deviation)
    return None


def _numbers(attribute: Attribute, column: pa.ChunkedArray) -> Floats:
    """float32 [items, attribute.width]"""
    column = _plain(column)
    fits = _holds_texts if attribute.kind == "texts" else _holds_numbers
    if not (fits(column.type) or pa.types.is_null(column.type)):
        raise UsageError(
            f"the table of items, column {attribute.name}: found {column.type}, "
            f"expected {'texts' if attribute.kind == 'texts' else 'numbers'}",
            hint="give the attributes that the ranker was trained with",
        )
    if attribute.kind == "texts":
        index = {value: place for place, value in enumerate(attribute.values)}
        found = np.zeros((len(column), attribute.width), np.float32)
        for row, texts in enumerate(_texts(attribute.name, column)):
            for text in texts:
                if text in index:
                    found[row, index[text]] = 1.0
        return found
    values = _floats(column)
    missing = ~np.isfinite(values)
    scores = np.clip((values - attribute.mean) / attribute.deviation, -_CLIP, _CLIP)[:, None]
    if attribute.kind == "time":
        times = np.nan_to_num(values)
        turns = np.stack([times // _DAY_MS % 7 / 7, times / _HOUR_MS % 24 / 24], 1) * 2 * np.pi
        scores = np.concatenate([scores, np.sin(turns), np.cos(turns)], 1)
    return np.where(missing[:, None], 0.0, scores).astype(np.float32)


def _ids(items: pa.Table) -> pa.ChunkedArray:
    if "item_id" not in items.column_names:
        raise UsageError(
            f"the table of items has no column item_id, found {', '.join(items.column_names) or 'none'}",
            hint="name the column of raw item ids item_id",
        )
    column = items["item_id"]
    if pa.types.is_string(column.type):  # `read_table` has checked it by the settings, which may allow longer ids
        return column
    return pa.chunked_array([id_column(column, "item_id", EventSettings())])


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The same values in one type per kind, since writers store texts and booleans in different types."""
    column = decoded(column)
    kind = column.type
    if _is_text(kind):
        return column.cast(pa.string())
    if _is_list(kind) and _is_text(kind.value_type):
        return column.cast(pa.list_(pa.string()))
    return column.cast(pa.uint8()) if pa.types.is_boolean(kind) else column


def _holds_texts(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or (_is_list(kind) and pa.types.is_string(kind.value_type))


def _holds_numbers(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_timestamp(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _floats(column: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    """NaN for null, the nearest float for an integer; timestamps in ms since 1970."""
    kind, factor = column.type, 1.0
    if pa.types.is_timestamp(kind):
        if kind.unit == "s":  # may exceed the range of 64-bit ms
            factor = 1000.0
        else:
            column = column.cast(pa.timestamp("ms", kind.tz), safe=False)
        column = column.cast(pa.int64())
    return pc.cast(column, pa.float64(), safe=False).to_numpy() * factor


def _texts(name: str, column: pa.ChunkedArray) -> list[list[str]]:
    """The texts of each row; nulls are left out."""
    try:
        rows = column.to_pylist()
    except UnicodeDecodeError:
        raise UsageError(
            f"the table of items, column {name}: found bytes that are no UTF-8, expected Unicode",
            hint="write the table's texts in UTF-8",
        ) from None
    return [
        [] if row is None else [row] if isinstance(row, str) else [text for text in row if text is not None]
        for row in rows
    ]
