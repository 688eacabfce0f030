"""Item attributes as numbers: what a new item has before anybody has acted on it.

A list of texts becomes one column per value, a text column with few distinct values likewise, a number its standard
score, and a time (a column ending in `_at` or `_seen`, ms) its day of week, hour and standard score. Ids, free text
and single-valued columns are left out. Which columns there are is decided on the items of the training window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Floats = npt.NDArray[np.float32]

_MAX_VALUES = 64  # distinct values that a column of texts may have
_CLIP = 4.0  # standard deviations
_DAY_MS, _HOUR_MS = 86_400_000, 3_600_000


def attribute_matrix(items: pa.Table, item_ids: Sequence[str], *, known: Sequence[str]) -> Floats:
    """float32 [n, A] of the items, zeros for those that the table lacks. `known`: items whose values decide the
    columns and the scales. A is 0 where the table has nothing usable."""
    place = {item: row for row, item in enumerate(items["item_id"].to_pylist())}
    rows = np.array([place.get(item, -1) for item in item_ids], np.int64)
    seen = np.array(sorted({place[item] for item in known if item in place}), np.int64)
    parts = [np.zeros((len(items), 0), np.float32)]
    for name in items.column_names:
        if name != "item_id" and len(seen):
            parts.append(_column(name, items[name], seen))
    table = np.concatenate(parts, 1)
    return np.where(rows[:, None] >= 0, table[rows], 0).astype(np.float32) if len(table) else table[rows]


def _column(name: str, column: pa.ChunkedArray, seen: npt.NDArray[np.int64]) -> Floats:
    kind = column.type
    if pa.types.is_list(kind) and pa.types.is_string(kind.value_type):
        return _indicators([values or [] for values in column.to_pylist()], seen)
    if pa.types.is_string(kind):
        return _indicators([[value] if value is not None else [] for value in column.to_pylist()], seen)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        values = pc.cast(column, pa.float64()).to_numpy()
        if name.endswith(("_at", "_seen")):
            return np.concatenate(
                [_scores(values, seen), _cycle(values, _day_of_week, 7), _cycle(values, _hour, 24)], 1
            )
        return _scores(values, seen)
    return np.zeros((len(column), 0), np.float32)


def _indicators(values: list[list[str]], seen: npt.NDArray[np.int64]) -> Floats:
    names = sorted({value for row in seen for value in values[row]})
    if not 2 <= len(names) <= _MAX_VALUES:
        return np.zeros((len(values), 0), np.float32)
    index = {name: column for column, name in enumerate(names)}
    found = np.zeros((len(values), len(names)), np.float32)
    for row, mine in enumerate(values):
        for value in mine:
            if value in index:
                found[row, index[value]] = 1.0
    return found


def _scores(values: npt.NDArray[np.float64], seen: npt.NDArray[np.int64]) -> Floats:
    known = values[seen][np.isfinite(values[seen])]
    if not len(known) or known.std() == 0:
        return np.zeros((len(values), 0), np.float32)
    scores = np.clip((values - known.mean()) / known.std(), -_CLIP, _CLIP)
    return np.nan_to_num(scores, nan=0.0)[:, None].astype(np.float32)


def _cycle(values: npt.NDArray[np.float64], part: Callable[[npt.NDArray[np.float64]], Floats], length: int) -> Floats:
    """A time's place in a cycle as a point on the circle."""
    angles = 2 * np.pi * part(np.nan_to_num(values)) / length
    return np.stack([np.sin(angles), np.cos(angles)], 1).astype(np.float32)


def _day_of_week(times_ms: npt.NDArray[np.float64]) -> Floats:
    return (times_ms // _DAY_MS % 7).astype(np.float32)


def _hour(times_ms: npt.NDArray[np.float64]) -> Floats:
    return (times_ms / _HOUR_MS % 24).astype(np.float32)
