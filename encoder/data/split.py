"""The split of events into training, validation and test events, by one of three protocols.

leave-one-out   test: each user's last event; validation: the one before; users of fewer than three events only train
global-time     test: the newest tenth of all events; validation: the tenth before it
newest          validation: the newest tenth; no test events: for releases that serve

Roles never decrease along a history, so the events up to a role are always a prefix of the history.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from spoor.activity.history import Histories
from spoor.base.errors import DataError, UsageError
from spoor.encoder.data.corpus import Corpus, CorpusStatistics

Protocol = Literal["leave-one-out", "global-time", "newest"]
Roles = npt.NDArray[np.uint8]
TRAIN, VALIDATION, TEST = 0, 1, 2

_VERSION = 1  # of the rules above; other rules make other splits
_LEAST_EVENTS = 3  # of a user from whom leave-one-out holds out events
_BINS = 65_536  # of the histogram that finds a quantile in a few passes
_READ_EVENTS = 4_000_000  # timestamps read at once
_BLOCK_EVENTS = 500_000  # events read at once


@dataclass(frozen=True)
class Split:
    """`digest`: SHA-256 of the rules' version, the protocol, the two times and the corpus's fingerprint; equal digests
    mean the same events in the same roles."""

    protocol: Protocol
    validation_from_ms: int | None  # validation events start at this time; None for leave-one-out
    test_from_ms: int | None  # test events start at this time; None if none by time
    digest: str

    def roles(self, histories: Histories) -> Roles:
        """uint8[N]: the role of every event of these whole histories."""
        if self.protocol == "leave-one-out":
            roles = np.full(len(histories.values), TRAIN, np.uint8)
            ends = histories.offsets[1:][histories.lengths >= _LEAST_EVENTS]
            roles[ends - 2] = VALIDATION
            roles[ends - 1] = TEST
            return roles
        times = histories.values["timestamp"]
        roles = np.zeros(len(times), np.uint8)
        for moment in (self.validation_from_ms, self.test_from_ms):
            if moment is not None:
                roles += times >= moment
        return roles

    def allowed_lengths(self, corpus: Corpus, *, upto: int) -> npt.NDArray[np.int64]:
        """int64[users]: the number of each user's events, its oldest ones, whose role is at most `upto`."""
        lengths = np.diff(corpus.offsets)
        if upto >= TEST:
            return lengths
        if self.protocol == "leave-one-out":
            return np.where(lengths >= _LEAST_EVENTS, lengths - (TEST - upto), lengths)
        before_ms = self.validation_from_ms if upto == TRAIN else self.test_from_ms
        if before_ms is None:
            return lengths
        allowed = np.empty(corpus.users, np.int64)
        for first, last in corpus.blocks(_READ_EVENTS):
            early = np.concatenate([[0], np.cumsum(corpus.times(first, last) < before_ms)])
            allowed[first:last] = np.diff(early[corpus.offsets[first : last + 1] - corpus.offsets[first]])
        return allowed

    def allowed_histories(self, corpus: Corpus, *, upto: int) -> Iterator[Histories]:
        """All users in order, block by block: the events whose role is at most `upto`."""
        lengths = self.allowed_lengths(corpus, upto=upto)
        for first, last in corpus.blocks(_BLOCK_EVENTS):
            yield corpus.read(first, last).oldest(lengths[first:last])

    def record(self, *, shuffle_ties: int | None) -> dict[str, Any]:
        """The record that a release keeps, for `check_split`."""
        return {"protocol": self.protocol, "digest": self.digest, "shuffle_ties": shuffle_ties}


def make_split(corpus: Corpus, protocol: Protocol) -> Split:
    """Raises UsageError for an unknown protocol, DataError if the times leave training or validation no events."""
    if protocol not in get_args(Protocol):
        raise UsageError(f"there is no protocol `{protocol}`", hint=f"choose one of {', '.join(get_args(Protocol))}")
    validation_from = test_from = None
    if protocol == "global-time":
        validation_from, test_from = _moment(corpus, corpus.events * 8 // 10), _moment(corpus, corpus.events * 9 // 10)
    elif protocol == "newest":
        validation_from = _moment(corpus, corpus.events * 9 // 10)
    if validation_from is not None and validation_from <= corpus.oldest_ms:
        raise DataError(
            f"the protocol `{protocol}` divides the events by time, and too many have the time {corpus.oldest_ms} ms",
            hint="give --protocol leave-one-out, or more events",
        )
    if test_from is not None and test_from == validation_from:
        raise DataError(
            f"the protocol `{protocol}` finds no time between the newest tenth of events and the tenth before it",
            hint="give --protocol leave-one-out",
        )
    parts = (_VERSION, protocol, validation_from, test_from, corpus.fingerprint)
    return Split(protocol, validation_from, test_from, hashlib.sha256(repr(parts).encode()).hexdigest())


def training_statistics(corpus: Corpus, split: Split, *, upto: int = VALIDATION) -> CorpusStatistics:
    """The corpus's counts without events of a later role and without users who then have no events. `tie_share` stays
    that of the corpus: it shows how fine the source's clock is."""
    users = events = repeats = 0
    items = np.empty(0, np.uint64)
    for histories in split.allowed_histories(corpus, upto=upto):
        users += int((histories.lengths > 0).sum())
        events += len(histories.values)
        repeats += histories.repeats()
        items = np.union1d(items, histories.values["item"])
    return CorpusStatistics(
        users=users,
        items=len(items),
        events=events,
        mean_length=events / max(users, 1),
        tie_share=corpus.counts.tie_share,
        repeat_share=repeats / max(events, 1),
    )


def check_split(recorded: Mapping[str, Any], split: Split, *, release: str) -> None:
    """`recorded`: the release's `Split.record`. Raises DataError unless `split` is the same, because the release may
    have been trained on the test events of another split."""
    if recorded["protocol"] != split.protocol:
        under = f"train one with --protocol {split.protocol}"
        held_out = recorded["protocol"] != "newest"  # newest has no test events
        raise DataError(
            f"release `{release}` was trained under the protocol {recorded['protocol']}, asked is {split.protocol}",
            hint=f"evaluate it with --protocol {recorded['protocol']}, or {under}" if held_out else under,
        )
    if recorded["digest"] != split.digest:
        raise DataError(
            f"release `{release}` was trained on other events: its split has the digest {recorded['digest']}, "
            f"these events have {split.digest}",
            hint="give --data the file it was trained on (and the same --shuffle-ties), or train a release on this one",
        )


def _moment(corpus: Corpus, rank: int) -> int:
    """The time of the event with `rank` older ones, rounded down to the resolution of the corpus's times, so that
    events of equal time in the source are never divided."""
    low, high = corpus.oldest_ms, corpus.newest_ms
    while low < high:
        width = -(-(high - low + 1) // _BINS)
        counts = np.zeros(_BINS, np.int64)
        for first, last in corpus.blocks(_READ_EVENTS):
            times = corpus.times(first, last)
            places = (times[(times >= low) & (times <= high)] - low) // width
            counts += np.bincount(places, minlength=_BINS)
        reached = np.cumsum(counts)
        place = int(np.searchsorted(reached, rank, side="right"))
        rank -= int(reached[place] - counts[place])
        low, high = low + place * width, min(low + (place + 1) * width - 1, high)
    return low // corpus.resolution_ms * corpus.resolution_ms
