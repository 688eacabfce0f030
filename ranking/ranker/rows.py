"""A window's impressions with all ranker inputs, and its batches.

Features, vectors and histories come from Feast by point-in-time join at each request's time. Requests with the same
(user, history revision) share one context, which a batch encodes once.

Legend: n rows, R requests, H distinct contexts, F features, A attributes, E floats of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import torch

from spoor.activity.hashing import hash_items, hash_names
from spoor.activity.history import Histories, slice_rows
from spoor.activity.packing import unpack
from spoor.base.errors import DataError
from spoor.encoder.model.events import Events
from spoor.encoder.model.vocabulary import Vocabulary, name_indexes
from spoor.ranking.features.attributes import AttributeLayout
from spoor.ranking.features.dataset import (
    ROW,
    Floats,
    Inputs,
    Reader,
    Scale,
    existing_inputs,
    read_features,
    vectors_of,
)
from spoor.ranking.features.impressions import Impressions
from spoor.ranking.ranker.fusion import RankingBatch

# Rows of user_id, event_timestamp and ROW → the same rows with `history` (packed, or null) and `revision`, any order.
HistoryReader = Callable[[pd.DataFrame], pa.Table]
Int64s = npt.NDArray[np.int64]
NO_ITEMS = pa.table({"item_id": pa.array([], pa.string())})


@dataclass(frozen=True, eq=False)
class RankingData:
    """`contexts`: H histories; `context_users`: the user of each; `request_contexts` int64 [R]; `stored` bool [R]: the
    request has a history in the feature store, otherwise an empty one; `features` [n, F] with NaN for null;
    `attributes` float32 [n, A] in the columns of `layout`; `user_vectors`, `item_vectors` float32 [n, E], zeros if
    unknown."""

    impressions: Impressions
    contexts: Histories
    context_users: tuple[str, ...]
    request_contexts: Int64s
    stored: npt.NDArray[np.bool_]
    features: Inputs
    attributes: Floats
    layout: AttributeLayout
    user_vectors: Floats
    item_vectors: Floats

    @property
    def has_user_vector(self) -> npt.NDArray[np.bool_]:
        """bool [R]: whether the user had a vector. All rows of a request share it."""
        found = np.zeros(self.impressions.requests, bool)
        found[self.impressions.row_requests] = self.user_vectors.any(1)
        return found

    @property
    def rows_per_context(self) -> float:
        """The paper's r: candidates per encoded history, if the whole window were one batch."""
        return len(self.impressions.item_ids) / max(self.contexts.count, 1)


def read_rows(
    impressions: Impressions,
    read: Reader,
    read_histories: HistoryReader | None = None,
    *,
    items: pa.Table | None = None,
    layout: AttributeLayout | None = None,
    dimension: int | None = None,
) -> RankingData:
    """The ranker inputs of these impressions at the time of their requests; other arguments as for `rows_of`. Raises
    DataError."""
    parts = [part for _, part in read_features(impressions.frame(), read)]
    table = pa.concat_tables(parts, promote_options="permissive")
    return rows_of(impressions, table, read_histories, items=items, layout=layout, dimension=dimension)


def rows_of(
    impressions: Impressions,
    features: pa.Table,
    read_histories: HistoryReader | None = None,
    *,
    items: pa.Table | None = None,
    layout: AttributeLayout | None = None,
    dimension: int | None = None,
) -> RankingData:
    """The ranker inputs, given the `features` in row order. Without `read_histories`, all histories are empty. `items`:
    attributes by `item_id`, which `layout` turns into numbers; `dimension`: E, if known. Raises DataError."""
    layout = layout or AttributeLayout()
    contexts = no_contexts(impressions) if read_histories is None else _contexts(impressions, read_histories)
    user_vectors, item_vectors = vectors_of(features, dimension=dimension)
    return RankingData(
        impressions,
        *contexts,
        features=existing_inputs(features),
        attributes=layout.matrix(items if items is not None else NO_ITEMS, impressions.item_ids),
        layout=layout,
        user_vectors=user_vectors,
        item_vectors=item_vectors,
    )


class BatchMaker:
    """Turns requests of one window into batches of tensors."""

    def __init__(self, data: RankingData, vocabulary: Vocabulary, scale: Scale, *, window: int) -> None:
        """`window`: number of newest events kept per context."""
        self.data = data
        contexts = data.contexts.newest(window)
        self._offsets = contexts.offsets
        times = contexts.values["timestamp"]
        self._events = Events.of(vocabulary.event_indexes(contexts), times, contexts.offsets)
        self._last_times = contexts.last_times()
        impressions = data.impressions
        self._items = vocabulary.item_indexes(hash_items(list(impressions.item_ids)))
        self._shown_on = name_indexes(hash_names(list(impressions.surfaces)), vocabulary.surfaces)
        since = np.maximum(impressions.times_ms - self._last_times[data.request_contexts], 0) / 1000.0
        since[contexts.lengths[data.request_contexts] == 0] = 0.0
        self._request_gaps = np.log1p(since).astype(np.float32)
        self._features = scale.standardised(data.features)

    def batch(self, requests: Int64s) -> tuple[RankingBatch, Int64s]:
        """The batch of these requests, and the index in `data.contexts` of each of its contexts."""
        data, impressions = self.data, self.data.impressions
        rows, offsets = slice_rows(impressions.offsets[requests], np.diff(impressions.offsets)[requests])
        of_row = np.repeat(requests, np.diff(offsets))
        contexts, place = np.unique(data.request_contexts[of_row], return_inverse=True)
        read, context_offsets = slice_rows(self._offsets[contexts], np.diff(self._offsets)[contexts])
        floats = (
            impressions.ages_days,
            self._features,
            data.attributes,
            data.user_vectors,
            data.item_vectors,
            impressions.labels,
        )
        ages, features, attributes, user_vectors, item_vectors, labels = (torch.from_numpy(x[rows]) for x in floats)
        made = RankingBatch(
            **vars(self._events.take(read, torch.from_numpy(context_offsets))),
            candidates=torch.from_numpy(self._items[rows]),
            shown_on=torch.from_numpy(self._shown_on[of_row]),
            candidate_context=torch.from_numpy(place.astype(np.int64)),
            candidate_gaps=torch.from_numpy(self._request_gaps[of_row]),
            ages_days=ages,
            features=features,
            attributes=attributes,
            user_vectors=user_vectors,
            item_vectors=item_vectors,
            labels=labels,
        )
        return made, contexts

    def batches(self, order: Int64s, *, rows: int) -> Iterator[Int64s]:
        """Splits the requests of `order` into parts of at most `rows` rows, with at least one request each."""
        lengths = np.diff(self.data.impressions.offsets)[order]
        start = total = 0
        for place, length in enumerate(lengths):
            if place > start and total + length > rows:
                yield order[start:place]
                start, total = place, 0
            total += int(length)
        if start < len(order):
            yield order[start:]


Contexts = tuple[Histories, tuple[str, ...], Int64s, npt.NDArray[np.bool_]]


def no_contexts(impressions: Impressions) -> Contexts:
    """One empty history shared by all requests."""
    requests = impressions.requests
    return Histories.empty(1), ("",), np.zeros(requests, np.int64), np.zeros(requests, bool)


def _contexts(impressions: Impressions, read: HistoryReader) -> Contexts:
    """The distinct histories of the requests, their users, the index of each request's history, and which requests
    have one in the store. Raises DataError if the read loses or repeats a request."""
    times = pd.to_datetime(impressions.times_ms, unit="ms", utc=True)
    asked = pd.DataFrame({"user_id": list(impressions.user_ids), "event_timestamp": times})
    table = read(asked.assign(**{ROW: np.arange(len(asked))}))
    order = np.argsort(table[ROW].to_numpy(), kind="stable")
    if not np.array_equal(table[ROW].to_numpy()[order], np.arange(len(asked))):
        raise DataError(
            f"a point-in-time read of {len(asked)} histories returned {len(table)} others",
            hint="use Feast's DuckDB offline store: its dask store drops rows",
        )
    table = table.take(pa.array(order))
    found: dict[tuple[str, int], int] = {}
    packed: list[bytes | None] = []
    place = np.empty(impressions.requests, np.int64)
    revisions, histories = table["revision"].to_pylist(), table["history"].to_pylist()
    for request, (user, revision, history) in enumerate(zip(impressions.user_ids, revisions, histories, strict=True)):
        key = (user, revision or 0)
        if key not in found:
            found[key] = len(packed)
            packed.append(history)
        place[request] = found[key]
    stored = np.array([history is not None for history in packed], bool)
    known = unpack([history for history in packed if history is not None])
    lengths = np.zeros(len(packed), np.int64)
    lengths[stored] = known.lengths
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Histories(known.values, offsets), tuple(user for user, _ in found), place, stored[place]
