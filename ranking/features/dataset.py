"""What the ranker learns from: requests, candidates, and their features at that moment.

A *request* is the start of a user's visit: rank every item that the user has not touched yet; relevant is what they go
on to act on positively during the visit. Features are read at the last millisecond before the visit's first event, by
Feast's point-in-time join through `Reader`, so no feature can know the answer.
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
_CLIP = 8.0  # standard deviations: a count far outside of training must not run away with the score
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


@dataclass(frozen=True, eq=False)
class Scale:
    """Mean and deviation of each feature over what is not null in the training rows, float32[f]; 0 and 1 for a column
    without any value or any change."""

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
) -> Impressions:
    """Per request up to `max_relevant` relevant items (label 1) and `negatives` times as many others (label 0), drawn
    evenly from the unseen."""
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
    """All requests if they make at most `most_rows` rows, else a random choice of them that does (at least one), oldest
    first. A request keeps all of its rows."""
    rows = np.array([rows_of(request) for request in requests], np.int64)
    return [requests[k] for k in sample_positions(rows, most_rows=most_rows, seed=seed)]


def candidate_parts(
    requests: Sequence[Request], catalogue: Sequence[str], *, rows_at_once: int, seed: int = 0
) -> Iterator[tuple[slice, Impressions]]:
    """Every item of the catalogue that the request's user has not seen, with its label, in a shuffled order (so that
    equal scores favour nobody).

    In pieces of whole requests, about `rows_at_once` rows each: all together may be more than fits into memory."""
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


def vectors_of(features: pa.Table, *, dimension: int | None = None) -> tuple[Floats, Floats]:
    """User and item vectors, float32[n, dimension] each, zeros where there is none. Without `dimension` they are as
    long as those that were read, or of one float where there are none. Raises DataError for vectors of another
    length."""
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
    """`chosen`: of each request, its items and whether each is relevant. Ages are not known."""
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
    """float32[n, d] of a list column; rows that are null are zeros. d = 0 where no row has a vector. Raises DataError
    for vectors of several lengths."""
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
