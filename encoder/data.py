"""From events to jagged training batches.

    lake or table -> Activity (every user's whole history) -> TrainingEvents (vocabulary indexes, targets)
                  -> segments (slices of at most max_events) -> batches of about `token_budget` events

Order is a function of (seed, epoch) alone, so a run resumes at any batch by counting to it.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from activity.errors import DataError
from activity.events import FIELDS
from activity.hashing import hash_items, hash_names
from activity.history import Histories, concat, group_events, history_values
from activity.lake import Lake
from encoder.vocabulary import Indexes, Vocabulary

_EVERY_EVENT = 2**62
_NO_TARGET = 0


@dataclass(frozen=True, eq=False)
class Activity:
    """All events before a time. `item_ids` and `action_names`: every distinct one, sorted."""

    histories: Histories
    item_ids: tuple[str, ...]
    action_names: tuple[str, ...]
    newest_ms: int  # time of the newest event
    fingerprint: str  # SHA-256 of the canonical histories: equal for equal sets of events


@dataclass(frozen=True, eq=False)
class TrainingEvents:
    """N events, users one after the other, oldest first, as vocabulary indexes. `targets[i]` is the item of the
    user's next event if that event is positive and allowed as a target, else 0."""

    items: Indexes
    actions: Indexes
    surfaces: Indexes
    targets: Indexes
    offsets: Indexes


@dataclass(frozen=True, eq=False)
class Batch:
    """Whole segments, jagged: int64 [N] each, `offsets` int64 [S + 1], `users` int64 [S]."""

    items: Tensor
    actions: Tensor
    surfaces: Tensor
    targets: Tensor
    offsets: Tensor
    users: npt.NDArray[np.int64]

    @property
    def tokens(self) -> int:
        return len(self.items)


def read_activity(source: Lake | pa.Table, *, until_ms: int | None) -> Activity:
    """Every event before `until_ms` (exclusive; None: every event). Raises DataError when there is none."""
    tables = _tables(source, until_ms)
    batches: list[Histories] = []
    item_ids: set[str] = set()
    action_names: set[str] = set()
    for table in tables:
        _, histories = group_events(table["user_id"].to_pylist(), history_values(table), max_events=_EVERY_EVENT)
        batches.append(histories)
        item_ids.update(pc.unique(table["item_id"]).to_pylist())
        action_names.update(pc.unique(table["action"]).to_pylist())
    histories = concat(batches)
    if len(histories.values) == 0:
        raise DataError(
            "there are no events to train on",
            hint="archive the topic first (`spoor archive`), or choose a later --until",
        )
    return Activity(
        histories=histories,
        item_ids=tuple(sorted(item_ids)),
        action_names=tuple(sorted(action_names)),
        newest_ms=int(histories.values["timestamp"].max()),
        fingerprint=_fingerprint(histories),
    )


def build_vocabulary(activity: Activity) -> Vocabulary:
    """The names that occur in the events."""
    hashes = hash_items(activity.item_ids)
    items, first = np.unique(hashes, return_index=True)
    return Vocabulary(
        items=items,
        actions=np.unique(activity.histories.values["action"]),
        surfaces=np.unique(activity.histories.values["surface"]),
        item_ids=tuple(activity.item_ids[place] for place in first),
    )


def training_events(
    histories: Histories, vocabulary: Vocabulary, *, positive_actions: Sequence[str], before_ms: int | None = None
) -> TrainingEvents:
    """`positive_actions` empty: every action is positive. With `before_ms`, only events before it are kept."""
    kept = histories if before_ms is None else histories.up_to(before_ms)
    items, actions, surfaces = vocabulary.event_indexes(kept)
    positive = is_positive(kept, positive_actions)
    targets = np.full(len(items), _NO_TARGET, np.int64)
    targets[:-1] = np.where(positive[1:], items[1:], _NO_TARGET)
    last_events = kept.offsets[1:][kept.lengths > 0] - 1
    targets[last_events] = _NO_TARGET
    return TrainingEvents(items, actions, surfaces, targets, kept.offsets)


def is_positive(histories: Histories, positive_actions: Sequence[str]) -> npt.NDArray[np.bool_]:
    """bool[N]: which events count as wanted; all of them when no action is named."""
    if not positive_actions:
        return np.ones(len(histories.values), bool)
    return np.isin(histories.values["action"], hash_names(positive_actions))


def positives_by_user(events: TrainingEvents) -> list[Indexes]:
    """For each user the sorted distinct items that are targets of theirs."""
    bounds = events.offsets
    found = (events.targets[start:end] for start, end in itertools.pairwise(bounds))
    return [np.unique(targets[targets != _NO_TARGET]) for targets in found]


def segments(offsets: Indexes, *, max_events: int) -> Indexes:
    """int64[S, 3] of (user, start, end): every history cut into slices, the newest `max_events` events in one slice
    as at inference. A slice of one event without a successor teaches nothing and is left to the caller."""
    found = [
        (user, max(int(start), end - max_events), end)
        for user, (start, stop) in enumerate(itertools.pairwise(offsets))
        for end in range(int(stop), int(start), -max_events)
    ]
    return np.array(found, np.int64).reshape(-1, 3)


def epoch_order(slices: Indexes, *, seed: int, epoch: int, token_budget: int) -> list[Indexes]:
    """The slices of one epoch in shuffled order, cut into batches of at most `token_budget` events (a batch always
    holds at least one slice). The same arguments give the same batches."""
    shuffled = slices[np.random.default_rng([seed, epoch]).permutation(len(slices))]
    batches: list[Indexes] = []
    start = tokens = 0
    for place, length in enumerate(shuffled[:, 2] - shuffled[:, 1]):
        if place > start and tokens + length > token_budget:
            batches.append(shuffled[start:place])
            start, tokens = place, 0
        tokens += int(length)
    return [*batches, shuffled[start:]] if len(shuffled) else []


def load_batch(events: TrainingEvents, slices: Indexes) -> Batch:
    """The rows of these slices, one after the other."""
    lengths = slices[:, 2] - slices[:, 1]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    rows = np.arange(offsets[-1]) + np.repeat(slices[:, 1] - offsets[:-1], lengths)
    items, actions, surfaces, targets = (
        torch.from_numpy(column[rows]) for column in (events.items, events.actions, events.surfaces, events.targets)
    )
    return Batch(items, actions, surfaces, targets, torch.from_numpy(offsets), slices[:, 0])


def _tables(source: Lake | pa.Table, until_ms: int | None) -> Iterator[pa.Table]:
    if isinstance(source, Lake):
        for bucket in source.buckets_with_data():
            yield source.read(bucket=bucket, to_ms=until_ms, columns=list(FIELDS))
    else:
        yield source if until_ms is None else source.filter(pc.less(source["timestamp"], until_ms))


def _fingerprint(histories: Histories) -> str:
    """Independent of the order of users: each user's events are digested, and the digests sorted."""
    users = sorted(hashlib.sha256(histories[user].tobytes()).digest() for user in range(histories.count))
    return hashlib.sha256(b"".join(users)).hexdigest()
