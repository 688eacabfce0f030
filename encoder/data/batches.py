"""From a corpus to jagged training batches, in flat memory.

    blocks of whole users, shuffled -> a window of a few blocks in memory -> its histories cut into segments, shuffled
                                    -> batches of at most `token_budget` events

The contents of a batch depend only on the reader's arguments, the epoch and the batch's number, so a run resumes at any
batch; earlier batches are counted, not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from spoor.activity.hashing import hash_names, mix_bits
from spoor.activity.history import Histories, slice_rows
from spoor.encoder.data.corpus import Corpus
from spoor.encoder.data.split import TRAIN, VALIDATION, Split
from spoor.encoder.model.events import Events, log_gaps
from spoor.encoder.model.vocabulary import Indexes, Vocabulary

BLOCK_EVENTS = 500_000
_WINDOW_BLOCKS = 4  # read together; their segments are shuffled together
_NO_TARGET = 0


@dataclass(frozen=True, eq=False, kw_only=True)
class Batch(Events):
    """The events of S whole segments; vocabulary indexes from 1, 0 = unknown.

    times       int64 [N], in ms
    targets     int64 [N]: the item of the user's next event (even across a cut) if it may be a target, else 0
    positive    bool [N]: whether the event may be a target: a known item with a positive action
    users, starts    int64 [S]: the user's number in the corpus; the index of the segment's first event in the history
    own_items, own_offsets    int64 [M], [S + 1]: the distinct items that may be targets of the segment's user
    """

    times: Tensor
    targets: Tensor
    positive: Tensor
    users: Tensor
    starts: Tensor
    own_items: Tensor
    own_offsets: Tensor

    @property
    def tokens(self) -> int:
        return len(self.items)


@dataclass(frozen=True, eq=False)
class Segments:
    """Slices of histories: events `starts[s]` to `ends[s]` of user `users[s]` (an index into the lengths given to
    `cut`)."""

    users: Indexes
    starts: Indexes
    ends: Indexes

    @property
    def lengths(self) -> Indexes:
        return self.ends - self.starts

    def take(self, places: Indexes) -> Segments:
        return Segments(self.users[places], self.starts[places], self.ends[places])


def cut(lengths: Indexes, shifts: Indexes, *, segment_length: int) -> Segments:
    """Cuts histories of these lengths backwards from the newest event into slices of `segment_length`. If a history is
    longer than that, its newest slice is `shifts` (int64, in [0, segment_length)) events shorter. A slice of only the
    newest event has no target and is left out."""
    newest = np.minimum(segment_length - np.where(lengths > segment_length, shifts, 0), lengths)
    counts = 1 + -(-(lengths - newest) // segment_length)
    users = np.repeat(np.arange(len(lengths)), counts)
    place = np.arange(len(users)) - np.repeat(np.cumsum(counts) - counts, counts)  # 0 for the newest slice of a user
    ends = lengths[users] - np.where(place > 0, newest[users] + (place - 1) * segment_length, 0)
    starts = np.maximum(ends - np.where(place > 0, segment_length, newest[users]), 0)
    kept = (ends - starts > 1) | (ends < lengths[users])
    return Segments(users[kept], starts[kept], ends[kept])


class BatchReader:
    """Batches of the events whose role is at most `roles_upto`. The same arguments give the same batches."""

    def __init__(
        self,
        corpus: Corpus,
        split: Split,
        vocabulary: Vocabulary,
        *,
        roles_upto: int,
        segment_length: int,
        token_budget: int,
        seed: int,
        positive_actions: Sequence[str] = (),
        block_events: int = BLOCK_EVENTS,
    ) -> None:
        """Empty `positive_actions`: every action is positive. A batch holds at least one segment."""
        self.corpus = corpus
        self.vocabulary = vocabulary
        self.segment_length = segment_length
        self.token_budget = token_budget
        self.seed = seed
        self.positive_actions = tuple(positive_actions)
        self.lengths = split.allowed_lengths(corpus, upto=roles_upto)  # int64 [users]: events that may be read
        self._blocks = corpus.blocks(block_events)

    def batches(self, epoch: int) -> int:
        """Number of batches of the epoch."""
        return sum(len(cuts) - 1 for _, _, cuts in self._plan(epoch))

    def epoch(self, epoch: int, *, start_batch: int = 0) -> Iterator[Batch]:
        """The epoch's batches from number `start_batch` on."""
        skipped = start_batch
        for blocks, segments, cuts in self._plan(epoch):
            count = len(cuts) - 1
            if skipped < count:
                window = _Window.read(self, blocks)
                for batch in range(skipped, count):
                    yield window.batch(segments.take(np.arange(cuts[batch], cuts[batch + 1])))
            skipped = max(skipped - count, 0)

    def _plan(self, epoch: int) -> Iterator[tuple[list[tuple[int, int]], Segments, list[int]]]:
        """Per window: its blocks, its segments in order, and the bounds of batches in them. Reads no events."""
        order = np.random.default_rng([self.seed, epoch, 0]).permutation(len(self._blocks))
        for window, first in enumerate(range(0, len(order), _WINDOW_BLOCKS)):
            blocks = [self._blocks[block] for block in order[first : first + _WINDOW_BLOCKS]]
            users = np.concatenate([np.arange(*block) for block in blocks])
            segments = cut(self.lengths[users], self._shifts(users, epoch), segment_length=self.segment_length)
            # Not sorted by length: attention groups equal lengths itself; sorting saved only 3 of its 20 µs an event.
            shuffled = np.random.default_rng([self.seed, epoch, 1 + window]).permutation(len(segments.users))
            segments = segments.take(shuffled)
            yield blocks, segments, _cut_batches(segments.lengths, self.token_budget)

    def _shifts(self, users: Indexes, epoch: int) -> Indexes:
        salt = np.random.default_rng([self.seed, epoch]).integers(2**64, dtype=np.uint64)
        drawn = mix_bits(users.astype(np.uint64) + salt)
        return (drawn % np.uint64(self.segment_length)).astype(np.int64)


class _Window:
    """The events of some blocks in memory, as vocabulary indexes: user u of the window has the rows offsets[u] to
    offsets[u + 1]. Columns use the narrowest types, because memory limits the size of a window."""

    def __init__(self, users: Indexes, parts: list[_Part]) -> None:
        self.users = users  # numbers in the corpus
        self.offsets = np.concatenate([[0], np.cumsum(np.concatenate([part.lengths for part in parts]))])
        self.items, self.actions, self.surfaces, self.times, self.positive = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("items", "actions", "surfaces", "times", "positive")
        )
        owners = np.repeat(np.arange(len(users), dtype=np.int32), np.diff(self.offsets))[self.positive]
        items = self.items[self.positive]
        order = np.lexsort((items, owners))
        owners, items = owners[order], items[order]
        first = np.append(True, (np.diff(owners) != 0) | (np.diff(items) != 0))[: len(owners)]
        self.own_items = items[first]
        self.own_offsets = np.searchsorted(owners[first], np.arange(len(users) + 1))

    @classmethod
    def read(cls, reader: BatchReader, blocks: list[tuple[int, int]]) -> _Window:
        parts = [
            _Part.of(
                reader.corpus.read(first, last).oldest(reader.lengths[first:last]),
                reader.vocabulary,
                reader.positive_actions,
            )
            for first, last in blocks
        ]
        return cls(np.concatenate([np.arange(*block) for block in blocks]), parts)

    def batch(self, segments: Segments) -> Batch:
        rows, offsets = slice_rows(self.offsets[segments.users] + segments.starts, segments.lengths)
        own_rows, own_offsets = slice_rows(self.own_offsets[segments.users], np.diff(self.own_offsets)[segments.users])
        following = np.minimum(rows + 1, len(self.items) - 1)
        may_follow = self.positive[following] & (
            rows + 1 < np.repeat(self.offsets[segments.users + 1], segments.lengths)
        )
        times = self.times[rows]
        return Batch(
            items=_int64(self.items[rows]),
            actions=_int64(self.actions[rows]),
            surfaces=_int64(self.surfaces[rows]),
            times=torch.from_numpy(times),
            targets=_int64(np.where(may_follow, self.items[following], _NO_TARGET)),
            positive=torch.from_numpy(self.positive[rows]),
            log_gaps=torch.from_numpy(log_gaps(times, offsets)),
            offsets=torch.from_numpy(offsets),
            users=torch.from_numpy(self.users[segments.users]),
            starts=torch.from_numpy(segments.starts),
            own_items=_int64(self.own_items[own_rows]),
            own_offsets=torch.from_numpy(own_offsets),
        )


@dataclass(frozen=True, eq=False)
class _Part:
    """The events of one block up to the reader's role: 21 bytes each."""

    lengths: Indexes
    items: npt.NDArray[np.int32]
    actions: npt.NDArray[np.int32]
    surfaces: npt.NDArray[np.int32]
    times: Indexes
    positive: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, histories: Histories, vocabulary: Vocabulary, positive_actions: Sequence[str]) -> _Part:
        items, actions, surfaces = (column.astype(np.int32) for column in vocabulary.event_indexes(histories))
        times = np.ascontiguousarray(histories.values["timestamp"])
        positive = _positive(histories, positive_actions) & (items > 0)
        return cls(histories.lengths, items, actions, surfaces, times, positive)


def build_vocabulary(corpus: Corpus, split: Split, *, roles_upto: int = VALIDATION) -> Vocabulary:
    """The items, actions and surfaces of the events whose role is at most `roles_upto`. By default, those of test
    events alone stay unknown."""
    found = {name: np.empty(0, dtype) for name, dtype in (("item", "<u8"), ("action", "<u8"), ("surface", "<u8"))}
    for histories in split.allowed_histories(corpus, upto=roles_upto):
        found = {name: np.union1d(known, histories.values[name]) for name, known in found.items()}
    hashes, first = np.unique(corpus.item_hashes, return_index=True)
    ids = corpus.item_ids
    places = first[np.searchsorted(hashes, found["item"])]
    return Vocabulary(found["item"], found["action"], found["surface"], tuple(ids[place] for place in places))


def target_counts(
    corpus: Corpus,
    split: Split,
    vocabulary: Vocabulary,
    *,
    roles_upto: int = TRAIN,
    positive_actions: Sequence[str] = (),
) -> Indexes:
    """int64[V + 1]: how often each item is the target of the previous event; 0 for the unknown item."""
    counts = np.zeros(len(vocabulary.items) + 1, np.int64)
    for histories in split.allowed_histories(corpus, upto=roles_upto):
        wanted = _positive(histories, positive_actions)
        wanted[histories.offsets[:-1][histories.lengths > 0]] = False  # a first event has no previous one
        counts += np.bincount(vocabulary.item_indexes(histories.values["item"][wanted]), minlength=len(counts))
    counts[_NO_TARGET] = 0
    return counts


def _positive(histories: Histories, positive_actions: Sequence[str]) -> npt.NDArray[np.bool_]:
    if not positive_actions:
        return np.ones(len(histories.values), bool)
    return np.isin(histories.values["action"], hash_names(positive_actions))


def _cut_batches(lengths: Indexes, token_budget: int) -> list[int]:
    """Indexes of the batches' first segments, and the end; each batch is as full as the budget allows."""
    reached = np.concatenate([[0], np.cumsum(lengths)])
    cuts = [0]
    while cuts[-1] < len(lengths):
        end = int(np.searchsorted(reached, reached[cuts[-1]] + token_budget, side="right")) - 1
        cuts.append(max(end, cuts[-1] + 1))
    return cuts


def _int64(column: npt.NDArray[np.integer]) -> Tensor:
    return torch.from_numpy(column.astype(np.int64))
