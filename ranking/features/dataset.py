"""What the ranker learns from: requests, candidates, and their features at that moment.

A *request* is the start of a user's visit: rank every item that the user has not touched yet; relevant is what they go
on to act on positively during the visit. Features are read at the last millisecond before the visit's first event, by
Feast's point-in-time join through `Reader`, so no feature can know the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from spoor.base.errors import DataError

Floats = npt.NDArray[np.float32]

USER_COUNTS = ("user_events_total", "user_events_7d", "user_events_28d")
ITEM_COUNTS = ("item_events_total", "item_users_total", "item_events_7d", "item_events_28d")
USER_COLUMNS = (*USER_COUNTS, "user_positive_rate")
ITEM_COLUMNS = (*ITEM_COUNTS, "item_positive_rate")
USER_VECTOR, ITEM_VECTOR = "embedding", "item_embedding"
ROW = "ranker_row"  # numbers the rows of a read: a join may return them in another order

# Entity rows (user_id, item_id, event_timestamp, …) → the same rows with features, in any order.
Reader = Callable[[pd.DataFrame], pa.Table]


@dataclass(frozen=True)
class Request:
    user_id: str
    time_ms: int  # one before the visit's first event
    relevant: tuple[str, ...]  # items, in the order in which the user acted on them
    seen: frozenset[str]  # items that the user acted on before; no candidates


@dataclass(frozen=True)
class Inputs:
    """What a ranker is fed. `values`: float32[n, f], NaN = null. `groups`: columns that are null together."""

    values: Floats
    groups: tuple[slice, ...]


def find_requests(
    events: pa.Table, *, from_ms: int, to_ms: int, positive_actions: Sequence[str] = (), gap_minutes: float = 30.0
) -> list[Request]:
    """The visits within [from_ms, to_ms), oldest first; a pause of `gap_minutes` or more ends a visit. Visits without a
    relevant new item ask nothing and are left out. Empty `positive_actions` = every action is positive."""
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
) -> pd.DataFrame:
    """Per request up to `max_relevant` relevant items (label 1) and `negatives` times as many others (label 0), drawn
    evenly from the unseen. Columns: request, user_id, item_id, event_timestamp, label."""
    chance = np.random.default_rng(seed)
    chosen: list[tuple[int, str, float]] = []
    for number, request in enumerate(requests):
        relevant = list(request.relevant)
        if len(relevant) > max_relevant:
            relevant = [relevant[k] for k in np.sort(chance.choice(len(relevant), max_relevant, replace=False))]
        known = request.seen.union(request.relevant)
        others = [item for item in catalogue if item not in known]
        picked = chance.choice(len(others), min(len(others), negatives * len(relevant)), replace=False)
        chosen += [(number, item, 1.0) for item in relevant]
        chosen += [(number, others[k], 0.0) for k in picked]
    return _rows(requests, chosen)


def sample_requests(
    requests: Sequence[Request], *, most_rows: int, rows_of: Callable[[Request], int], seed: int = 0
) -> list[Request]:
    """All requests if they make at most `most_rows` rows, else a random choice of them that does (at least one), oldest
    first. A request keeps all of its rows."""
    rows = np.array([rows_of(request) for request in requests], np.int64)
    return [requests[k] for k in sample_positions(rows, most_rows=most_rows, seed=seed)]


def sample_positions(rows: npt.NDArray[np.int64], *, most_rows: int, seed: int) -> npt.NDArray[np.int64]:
    """`rows` int64[n]: of each request. All positions if they make at most `most_rows` rows, else a random choice of
    them that does (at least one), ascending."""
    if rows.sum() <= most_rows:
        return np.arange(len(rows))
    order = np.random.default_rng(seed).permutation(len(rows))
    kept = int(np.searchsorted(np.cumsum(rows[order]), most_rows, side="right"))
    return np.sort(order[: max(kept, 1)])


def candidate_parts(
    requests: Sequence[Request], catalogue: Sequence[str], *, rows_at_once: int, seed: int = 0
) -> Iterator[tuple[slice, pd.DataFrame]]:
    """Every item of the catalogue that the request's user has not seen, with its label, in a shuffled order (so that
    equal scores favour nobody). Columns as `training_rows`; `request` numbers all requests.

    In pieces of whole requests, about `rows_at_once` rows each: all together may be more than fits into memory."""
    chance = np.random.default_rng(seed)
    at_once = max(rows_at_once // max(len(catalogue), 1), 1)
    for start in range(0, len(requests), at_once):
        part = slice(start, min(start + at_once, len(requests)))
        yield part, _candidate_rows(requests, part, catalogue, chance)


def _candidate_rows(
    requests: Sequence[Request], part: slice, catalogue: Sequence[str], chance: np.random.Generator
) -> pd.DataFrame:
    chosen: list[tuple[int, str, float]] = []
    for number in range(part.start, part.stop):
        request = requests[number]
        relevant = set(request.relevant)
        candidates = [item for item in catalogue if item not in request.seen]
        order = chance.permutation(len(candidates))
        chosen += [(number, candidates[k], float(candidates[k] in relevant)) for k in order]
    return _rows(requests, chosen)


def read_features(rows: pd.DataFrame, read: Reader, *, chunk_rows: int = 20_000) -> Iterator[tuple[slice, pa.Table]]:
    """The features of the rows, in their order, chunk by chunk. Raises DataError if the read loses or repeats a row."""
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
    """The existing features alone: counts as log(1 + n), rates as they are."""
    columns = [_column(features, name) for name in (*USER_COLUMNS, *ITEM_COLUMNS)]
    users = len(USER_COLUMNS)
    return Inputs(np.stack(columns, 1), (slice(0, users), slice(users, len(columns))))


def embedding_inputs(features: pa.Table) -> Inputs:
    """The existing features, and beside them user and item vector: their product per dimension and its sum, the
    cosine. Null where either is unknown (a vector of zeros is unknown, too)."""
    existing = existing_inputs(features)
    users, items = _vectors(features[USER_VECTOR]), _vectors(features[ITEM_VECTOR])
    dimension = max(users.shape[1], items.shape[1])
    if users.shape[1] != items.shape[1] and users.shape[1] and items.shape[1]:
        raise DataError(
            f"user vectors have {users.shape[1]} dimensions, item vectors {items.shape[1]}",
            hint="read both from the service of one release",
        )
    products = np.full((len(features), dimension), np.nan, np.float32)
    if users.shape[1] and items.shape[1]:
        products = users * items
    values = np.concatenate([existing.values, products, products.sum(1, keepdims=True)], 1)
    return Inputs(values, (*existing.groups, slice(existing.values.shape[1], values.shape[1])))


def has_user_vector(features: pa.Table) -> npt.NDArray[np.bool_]:
    """Per row: did the user have an embedding at that time? bool[n]."""
    vectors = _vectors(features[USER_VECTOR])
    return np.isfinite(vectors[:, 0]) if vectors.shape[1] else np.zeros(len(features), bool)


def vectors_of(features: pa.Table, which: Literal["user", "item"], *, dimension: int) -> Floats:
    """float32[n, dimension] of Feast's user or item vectors, zeros where there is none. Raises DataError for vectors of
    another length."""
    vectors = _vectors(features[USER_VECTOR if which == "user" else ITEM_VECTOR])
    if vectors.shape[1] not in (0, dimension):
        raise DataError(
            f"{which} vectors have {vectors.shape[1]} dimensions, the release {dimension}",
            hint="read them from the service of the same release",
        )
    return np.nan_to_num(vectors) if vectors.shape[1] else np.zeros((len(features), dimension), np.float32)


def _rows(requests: Sequence[Request], chosen: list[tuple[int, str, float]]) -> pd.DataFrame:
    number = np.array([row[0] for row in chosen], np.int64)
    users = np.array([request.user_id for request in requests], object)
    times = np.array([request.time_ms for request in requests], np.int64)
    return pd.DataFrame(
        {
            "request": number,
            "user_id": users[number],
            "item_id": [row[1] for row in chosen],
            "event_timestamp": pd.to_datetime(times[number], unit="ms", utc=True),
            "label": np.array([row[2] for row in chosen], np.float32),
        }
    )


def _column(features: pa.Table, name: str) -> Floats:
    values = features[name].to_pandas().to_numpy(np.float64, na_value=np.nan)
    return (values if name.endswith("_rate") else np.log1p(values)).astype(np.float32)


def _vectors(column: pa.ChunkedArray) -> Floats:
    """float32[n, d] of a list column; rows that are null or all zeros are NaN. d = 0 where no row has a vector.
    Raises DataError for vectors of several lengths."""
    lists = column.combine_chunks()
    if pa.types.is_null(lists.type) or lists.null_count == len(lists):
        return np.full((len(lists), 0), np.nan, np.float32)
    known = np.flatnonzero(lists.is_valid().to_numpy(zero_copy_only=False))
    lengths = set(lists.value_lengths().drop_null().to_pylist())
    if len(lengths) != 1:
        raise DataError(f"found vectors of lengths {sorted(lengths)}, expected one", hint="run `spoor verify`")
    dimension = lengths.pop()
    vectors = np.full((len(lists), dimension), np.nan, np.float32)
    vectors[known] = lists.flatten().to_numpy(zero_copy_only=False).reshape(-1, dimension)
    vectors[~vectors.any(1)] = np.nan
    return vectors
