"""Columns of a file or frame → columns of events, by the rules for single values (activity/rules.py).

A column has few distinct values: each is validated once, so a column gets the same verdicts as records do. Only integer
and timestamp times are computed by column, with the rule's rounding: down to the millisecond.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from spoor.activity.rules import rule, with_default
from spoor.activity.settings import EventSettings
from spoor.base.errors import EventError

Column = Sequence[Any] | pa.ChunkedArray
_TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_DISTINCT = (
    pa.types.is_integer,
    pa.types.is_decimal128,
    pa.types.is_decimal256,
    pa.types.is_binary,
    pa.types.is_large_binary,
)
_NO_PYTHON_VALUE = (ArithmeticError, LookupError, ValueError, ImportError, pa.ArrowException)
_PER_MS = {"us": 1_000, "ns": 1_000_000}


class RowError(Exception):
    """Row `row` of the column was refused."""

    def __init__(self, row: int, error: EventError) -> None:
        super().__init__(str(error))
        self.row = row
        self.error = error


def convert(column: Column, name: str, settings: EventSettings) -> pa.Array:
    """The column of the event's field `name`: string, or int64 of ms. Raises RowError for the first bad row."""
    judge = rule(name, settings)
    kind = pa.int64() if name == "timestamp" else pa.string()

    def one(value: Any) -> str | int:
        return judge(with_default(value, name, settings))

    if not len(column):
        return pa.array([], kind)
    if not isinstance(column, pa.ChunkedArray):
        return pa.array(_convert_values(column, one), kind)
    plain = decoded(column)
    if name == "timestamp" and (times := _times(plain)) is not None:
        return times
    if any(test(plain.type) for test in _TEXT):
        plain = plain.cast(pa.large_binary())  # bytes, because the text may be invalid UTF-8
    if not any(test(plain.type) for test in _DISTINCT):
        return pa.array(_convert_values(python_values(plain, name), one), kind)
    encoded = pc.dictionary_encode(plain, null_encoding="encode").combine_chunks()
    try:
        distinct = pa.array([one(value) for value in encoded.dictionary.to_pylist()], kind)
    except EventError:
        _convert_each(plain.to_pylist(), one)
        raise
    return distinct.take(encoded.indices)


def decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The plain values of a dictionary-encoded or run-end-encoded column."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        views = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}
        if kind.value_type in views:  # Arrow's `take` does not support them
            return decoded(column.cast(pa.dictionary(kind.index_type, views[kind.value_type])))
        values = [chunk.dictionary.take(chunk.indices) for chunk in column.chunks]
        return decoded(pa.chunked_array(values, kind.value_type))
    if pa.types.is_run_end_encoded(kind):
        try:
            values = [pc.run_end_decode(chunk) for chunk in column.chunks]
        except pa.ArrowNotImplementedError:  # nested values, which are never ids
            return column
        return decoded(pa.chunked_array(values, kind.value_type))
    return column


def _times(column: pa.ChunkedArray) -> pa.Array | None:
    """ms of a column of integers or of timestamps with a zone; None if the rule must check each value."""
    kind = column.type
    if column.null_count:
        return None
    if pa.types.is_integer(kind) and kind != pa.uint64():
        return column.cast(pa.int64()).combine_chunks()
    if not pa.types.is_timestamp(kind) or kind.tz is None or kind.unit == "s":
        return None
    numbers = column.cast(pa.int64()).to_numpy()
    return pa.array(np.floor_divide(numbers, _PER_MS.get(kind.unit, 1)), pa.int64())


@dataclass(frozen=True)
class ArrowValue:
    """A value reduced to its type. Python's dates and times have a smaller range than Arrow's, and the storage of an
    extension type is not its meaning (the number of a month)."""

    kind: pa.DataType

    def __repr__(self) -> str:
        return str(self.kind)


def python_values(column: pa.ChunkedArray, name: str) -> list[Any]:
    """The values of the column of the event's field `name`, or of `pos`; an ArrowValue for each value that Python
    cannot represent. Invalid UTF-8 becomes surrogates."""
    column = decoded(column)
    kind = column.type
    if any(test(kind) for test in _TEXT):
        texts = column.cast(pa.large_binary()).to_pylist()
        return [None if text is None else text.decode(errors="surrogateescape") for text in texts]
    moments = name == "timestamp" and pa.types.is_timestamp(kind) and kind.tz is not None
    if isinstance(kind, pa.BaseExtensionType) or (pa.types.is_temporal(kind) and not moments):
        return [None if missing else ArrowValue(kind) for missing in column.is_null().to_pylist()]
    if not moments:
        try:
            return column.to_pylist()
        except _NO_PYTHON_VALUE:
            return [_python_value(scalar) for scalar in column]
    numbers = column.cast(pa.int64()).to_pylist()
    per_ms, ms = _PER_MS.get(kind.unit, 1), 1_000 if kind.unit == "s" else 1
    return [None if number is None else number * ms // per_ms for number in numbers]


def _python_value(scalar: pa.Scalar[Any]) -> Any:
    try:
        return scalar.as_py()
    except _NO_PYTHON_VALUE:
        return ArrowValue(scalar.type)


def _convert_values(values: Sequence[Any], one: Callable[[Any], Any]) -> list[Any]:
    if set(map(type, values)) <= {str, type(None)}:
        try:
            known = {value: one(value) for value in dict.fromkeys(values)}
        except EventError:
            pass
        else:
            return [known[value] for value in values]
    return _convert_each(values, one)


def _convert_each(values: Sequence[Any], one: Callable[[Any], Any]) -> list[Any]:
    found: list[Any] = []
    for row, value in enumerate(values):
        try:
            found.append(one(value))
        except EventError as error:
            raise RowError(row, error) from None
    return found
