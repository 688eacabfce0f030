"""Which events may train, which pick the model, which test it.

leave-one-out   each user's last event tests, the one before it validates; users with fewer than three events train
global-time     the newest tenth of all events tests, the tenth before it validates
newest          the newest tenth validates, nothing tests: for releases that serve

Along a history the role never goes back, so what a role may see is always a prefix of the history.
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

_VERSION = 1  # of the rules above: other rules are other splits
_LEAST_EVENTS = 3  # of a user of whom something is held out by leave-one-out
_BINS = 65_536  # of the histogram that finds a quantile in a few passes
_READ_EVENTS = 4_000_000  # times read at once
_BLOCK_EVENTS = 500_000  # events read at once


@dataclass(frozen=True)
class Split:
    """`digest`: SHA-256 of the rules, the corpus's fingerprint and the two times; equal digests hold the same events
    in the same roles."""

    protocol: Protocol
    validation_from_ms: int | None  # events from here on validate; None for leave-one-out
    test_from_ms: int | None  # events from here on test; None where nothing tests by time
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
        """int64[users]: how many events of each user have a role of at most `upto`: its oldest ones."""
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
        """All users in turn, block by block: the events whose role is at most `upto`."""
        lengths = self.allowed_lengths(corpus, upto=upto)
        for first, last in corpus.blocks(_BLOCK_EVENTS):
            yield corpus.read(first, last).oldest(lengths[first:last])

    def record(self, *, shuffle_ties: int | None) -> dict[str, Any]:
        """What a release keeps of it, for `check_split`."""
        return {"protocol": self.protocol, "digest": self.digest, "shuffle_ties": shuffle_ties}


def make_split(corpus: Corpus, protocol: Protocol) -> Split:
    """Raises UsageError for a protocol that there is not, DataError where the times leave nothing to train on."""
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
    """The counts of the corpus without the events that have a later role, and without users of whom nothing is left.
    `tie_share` stays that of the corpus: it tells how fine the source's clock is."""
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
    """`recorded`: what the release keeps of its own split. Raises DataError unless `split` is the same: what would
    test the release may have trained it."""
    if recorded["protocol"] != split.protocol:
        under = f"train one with --protocol {split.protocol}"
        held_out = recorded["protocol"] != "newest"  # which holds out nothing to evaluate on
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
    """The time of the event that has `rank` older ones, brought down to the resolution of the corpus's times: what
    happened at one time in the source is never divided."""
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
