"""Requests of the lift table, their candidates, and point-in-time features as numbers.

A *request* is the start of a user's visit. Candidates are all items that the user has not acted on; relevant items are
those with a positive action during the visit. Features are read one millisecond before the visit's first event, by
Feast's point-in-time join through `Reader`, so they contain no event of the visit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from spoor.base.errors import DataError
from spoor.ranking.features.impressions import Impressions, sample_positions
from spoor.ranking.settings import ENGAGED

Floats = npt.NDArray[np.float32]

USER_COUNTS = ("user_events_total", "user_events_7d", "user_events_28d")
ITEM_COUNTS = ("item_events_total", "item_users_total", "item_events_7d", "item_events_28d")
USER_COLUMNS = (*USER_COUNTS, "user_positive_rate")
ITEM_COLUMNS = (*ITEM_COUNTS, "item_positive_rate")
USER_VECTOR, ITEM_VECTOR = "embedding", "item_embedding"
_MIN_DEVIATION = 1e-6
_CLIP = 8.0  # standard deviations: a count far outside the training range must not dominate the score
ROW = "ranker_row"  # row number within a read: a join may return rows in another order

# Entity rows (user_id, item_id, event_timestamp, …) → the same rows with features, in any order.
Reader = Callable[[pd.DataFrame], pa.Table]


@dataclass(frozen=True)
class Request:
    user_id: str
    time_ms: int  # 1 ms before the visit's first event
    relevant: tuple[str, ...]  # items, in order of the user's first positive action in the visit
    seen: frozenset[str]  # items that the user acted on before the visit; not candidates


@dataclass(frozen=True)
class Inputs:
    """The numeric inputs of a ranker. `values`: float32[n, f], NaN = null. `groups`: columns that are null together."""

    values: Floats
    groups: tuple[slice, ...]


@dataclass(frozen=True, eq=False)
class Scale:
    """Mean and deviation of each feature over the non-null training values, float32[f]. The deviation of a constant or
    empty column is 1, the mean of an empty one 0."""

    mean: Floats
    deviation: Floats

    @classmethod
    def of(cls, inputs: Inputs) -> Scale:
        values = inputs.values
        known = ~np.isnan(values)
        count = np.maximum(known.sum(0), 1)
        mean = np.where(known, values, 0).astype(np.float64).sum(0) / count
        deviation = np.sqrt((np.where(known, values - mean, 0) ** 2).sum(0) / count)
        deviation[deviation < _MIN_DEVIATION] = 1.0
        return cls(mean.astype(np.float32), deviation.astype(np.float32))

    def standardised(self, inputs: Inputs) -> Floats:
        """float32[n, f + groups]: standardised values, nulls as the mean, then one indicator per group."""
        missing = np.isnan(inputs.values)
        values = np.clip((inputs.values - self.mean) / self.deviation, -_CLIP, _CLIP)
        flags = [missing[:, group].any(1, keepdims=True) for group in inputs.groups]
        return np.concatenate([np.where(missing, 0, values), *flags], 1).astype(np.float32)


def find_requests(
    events: pa.Table, *, from_ms: int, to_ms: int, positive_actions: Sequence[str] = (), gap_minutes: float = 30.0
) -> list[Request]:
    """One request per visit within [from_ms, to_ms), oldest first; a pause of at least `gap_minutes` ends a visit.
    Visits without a relevant new item are left out. Empty `positive_actions` = every action is positive."""
    frame = events.select(["user_id", "item_id", "action", "timestamp"]).to_pandas()
    frame = frame[frame["timestamp"] < to_ms].sort_values(["user_id", "timestamp"], kind="stable")
    positive = frame["action"].isin(list(positive_actions)) if positive_actions else pd.Series(True, frame.index)
    found: list[Request] = []
    for user_id, mine in frame.assign(positive=positive).groupby("user_id", sort=True):
        times = mine["timestamp"].to_numpy()
        items = mine["item_id"].to_numpy()
        first = int(np.searchsorted(times, from_ms))
        pauses = np.flatnonzero(np.diff(times[first:]) >= gap_minutes * 60_000) + first + 1
        bounds = [first, *pauses.tolist(), len(times)]
        for start, end in pairwise(bounds):
            seen = frozenset(items[:start])
            liked = items[start:end][mine["positive"].to_numpy()[start:end]]
            relevant = tuple(item for item in dict.fromkeys(liked) if item not in seen)
            if relevant:
                found.append(Request(str(user_id), int(times[start]) - 1, relevant, seen))
    return sorted(found, key=lambda request: (request.time_ms, request.user_id))


def training_rows(
    requests: Sequence[Request], catalogue: Sequence[str], *, negatives: int = 4, max_relevant: int = 20, seed: int = 0
) -> Impressions:
    """Per request up to `max_relevant` relevant items (label 1) and `negatives` times as many others (label 0), drawn
    uniformly from unseen items."""
    chance = np.random.default_rng(seed)
    chosen: list[list[tuple[str, bool]]] = []
    for request in requests:
        relevant = list(request.relevant)
        if len(relevant) > max_relevant:
            relevant = [relevant[k] for k in np.sort(chance.choice(len(relevant), max_relevant, replace=False))]
        known = request.seen.union(request.relevant)
        others = [item for item in catalogue if item not in known]
        picked = chance.choice(len(others), min(len(others), negatives * len(relevant)), replace=False)
        chosen.append([*((item, True) for item in relevant), *((others[k], False) for k in picked)])
    return _impressions(requests, chosen)


def sample_requests(
    requests: Sequence[Request], *, most_rows: int, rows_of: Callable[[Request], int], seed: int = 0
) -> list[Request]:
    """All requests if they have at most `most_rows` rows in total, else a random sample that does (at least one
    request), oldest first. A request keeps all of its rows."""
    rows = np.array([rows_of(request) for request in requests], np.int64)
    return [requests[k] for k in sample_positions(rows, most_rows=most_rows, seed=seed)]


def candidate_parts(
    requests: Sequence[Request], catalogue: Sequence[str], *, rows_at_once: int, seed: int = 0
) -> Iterator[tuple[slice, Impressions]]:
    """All catalogue items that the request's user has not seen, with labels, in shuffled order (so that ties in the
    score favour no item).

    Yields whole requests in parts of about `rows_at_once` rows, since all rows may exceed memory."""
    chance = np.random.default_rng(seed)
    at_once = max(rows_at_once // max(len(catalogue), 1), 1)
    for start in range(0, len(requests), at_once):
        part = requests[start : start + at_once]
        chosen: list[list[tuple[str, bool]]] = []
        for request in part:
            relevant = set(request.relevant)
            candidates = [item for item in catalogue if item not in request.seen]
            chosen.append([(candidates[k], candidates[k] in relevant) for k in chance.permutation(len(candidates))])
        yield slice(start, start + len(part)), _impressions(part, chosen)


def read_features(rows: pd.DataFrame, read: Reader, *, chunk_rows: int = 20_000) -> Iterator[tuple[slice, pa.Table]]:
    """The features of the rows, in row order, by chunks. Raises DataError if the read loses or repeats a row."""
    for start in range(0, len(rows), chunk_rows):
        chunk = rows.iloc[start : start + chunk_rows]
        asked = chunk[["user_id", "item_id", "event_timestamp"]].assign(**{ROW: np.arange(len(chunk))})
        table = read(asked)
        order = np.argsort(table[ROW].to_numpy(), kind="stable")
        if not np.array_equal(table[ROW].to_numpy()[order], np.arange(len(chunk))):
            raise DataError(
                f"a point-in-time read of {len(chunk)} rows returned {len(table)} others",
                hint="use Feast's DuckDB offline store: its dask store drops rows",
            )
        yield slice(start, start + len(chunk)), table.take(pa.array(order))


def existing_inputs(features: pa.Table) -> Inputs:
    """Only the existing features: counts as log(1 + n), rates unchanged."""
    columns = [_column(features, name) for name in (*USER_COLUMNS, *ITEM_COLUMNS)]
    users = len(USER_COLUMNS)
    return Inputs(np.stack(columns, 1), (slice(0, users), slice(users, len(columns))))


def vectors_of(features: pa.Table, *, dimension: int | None = None) -> tuple[Floats, Floats]:
    """User and item vectors, float32[n, dimension] each; zeros if missing. Without `dimension`, the length is that of
    the vectors read, or 1 if there are none. Raises DataError for vectors of another length."""
    found = {which: _vectors(features[name]) for which, name in (("user", USER_VECTOR), ("item", ITEM_VECTOR))}
    dimension = dimension or max(1, *(vectors.shape[1] for vectors in found.values()))
    for which, vectors in found.items():
        if vectors.shape[1] not in (0, dimension):
            raise DataError(
                f"{which} vectors have {vectors.shape[1]} dimensions, expected {dimension}",
                hint="read them from the service of one release",
            )
    users, items = (v if v.shape[1] else np.zeros((len(v), dimension), np.float32) for v in found.values())
    return users, items


def _impressions(requests: Sequence[Request], chosen: Sequence[Sequence[tuple[str, bool]]]) -> Impressions:
    """`chosen`: per request, (item, is relevant) pairs. Ages are set to 0: they are unknown here."""
    rows = [row for rows in chosen for row in rows]
    return Impressions(
        user_ids=tuple(request.user_id for request in requests),
        surfaces=("",) * len(requests),
        times_ms=np.array([request.time_ms for request in requests], np.int64),
        offsets=np.cumsum([0, *(len(rows) for rows in chosen)]).astype(np.int64),
        item_ids=tuple(item for item, _ in rows),
        labels=np.array([[relevant] for _, relevant in rows], np.float32).reshape(-1, 1),
        ages_days=np.zeros(len(rows), np.float32),
        tasks=(ENGAGED,),
    )


def _column(features: pa.Table, name: str) -> Floats:
    values = features[name].to_pandas().to_numpy(np.float64, na_value=np.nan)
    return (values if name.endswith("_rate") else np.log1p(values)).astype(np.float32)


def _vectors(column: pa.ChunkedArray) -> Floats:
    """float32[n, d] of a list column; null rows are zeros. d = 0 if no row has a vector. Raises DataError for vectors
    of different lengths."""
    lists = column.combine_chunks()
    if pa.types.is_null(lists.type) or lists.null_count == len(lists):
        return np.zeros((len(lists), 0), np.float32)
    lengths = set(lists.value_lengths().drop_null().to_pylist())
    if len(lengths) != 1:
        raise DataError(f"found vectors of lengths {sorted(lengths)}, expected one", hint="run `spoor verify`")
    dimension = lengths.pop()
    vectors = np.zeros((len(lists), dimension), np.float32)
    flat = lists.flatten().to_numpy(zero_copy_only=False).reshape(-1, dimension)
    vectors[lists.is_valid().to_numpy(zero_copy_only=False)] = np.nan_to_num(flat)
    return vectors
