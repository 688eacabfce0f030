"""The DoFn of `spoor verify`: compares user buckets with the online store, and repairs users that differ."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path

import apache_beam as beam
import numpy as np
import numpy.typing as npt

from spoor.activity.history import Histories, Values, concat, not_among, same_events
from spoor.activity.lake import open_lake
from spoor.activity.packing import unpack_readable
from spoor.base.files import Manifest
from spoor.base.numbers import number_text
from spoor.batch.jobs import Failures, add_counts
from spoor.batch.kafka.publish import Journal, Publisher, open_publisher
from spoor.batch.releases import encoders
from spoor.batch.settings import BatchSettings
from spoor.batch.users.histories import SLICE_USERS, UserBatch, newest_histories
from spoor.batch.users.listing import listed_users, require_run
from spoor.store.encoding import Encoder
from spoor.store.online import OnlineStore, open_online
from spoor.store.rows import EmbeddingRow, StoredUser, UserWrite
from spoor.store.writer import GuardedWriter

NAMESPACE = "spoor.verify"
USERS = "users"
DIFFERENCES = "differences"
MISSING_USER = "missing user"  # in the lake, not online
UNEXPECTED_USER = "unexpected user"  # online, not in the lake
HISTORY_DIFFERS = "history differs"
UNREADABLE_HISTORY = "unreadable history"  # writers skip its user
REVISION_BEHIND = "revision behind"  # the embedding is missing, or of another revision than the stored history
EMBEDDING_DIFFERS = "embedding differs"  # from the one that its release computes from the stored history
LAKE_LACKS = (UNEXPECTED_USER, HISTORY_DIFFERS)  # kinds of difference that an online event missing in the lake causes
KINDS = (MISSING_USER, UNEXPECTED_USER, HISTORY_DIFFERS, UNREADABLE_HISTORY, REVISION_BEHIND, EMBEDDING_DIFFERS)
TOLERANCE = 1e-5
MAX_EXAMPLES = 20


@dataclass(frozen=True)
class Difference:
    user_id: str
    kind: str
    release: str  # "" for a history
    detail: str


@dataclass(frozen=True)
class Compared:
    """`rows`: readable embeddings, by release, of users with a readable history. `outdated`: users whose stored history
    equals the lake's, but has names of hash version 1."""

    differences: list[Difference]
    rows: Counter[str]
    outdated: list[str]

    def users(self) -> set[str]:
        """The users that a repair writes."""
        return {difference.user_id for difference in self.differences}.union(self.outdated)


@dataclass(eq=False)
class VerifyBuckets(beam.DoFn):
    """Group of user buckets → a report in folder/manifest; yields its key."""

    settings: BatchSettings
    releases: Sequence[str]
    folder: Path
    repair: bool = field(kw_only=True)

    def setup(self) -> None:
        with Failures(self.folder).recorded():
            self._online = open_online(self.settings.features)
            self._encoders = encoders(self.settings.features, self.settings.kernels, self.releases)
            self._mender: Mender | None = None
            if self.repair:
                self._mender = Mender(self.settings, self._online, list(self._encoders.values()))

    def teardown(self) -> None:
        mender: Mender | None = getattr(self, "_mender", None)
        if mender is not None:
            mender.close()

    def process(self, element: tuple[int, ...]) -> Iterator[str]:  # pyright: ignore[reportIncompatibleMethodOverride]
        key = f"buckets-{element[0]:02d}"
        if Manifest(self.folder / "manifest").get(key) is not None:  # done by a try that the runner lost
            return
        with Failures(self.folder).recorded():
            require_run(self.folder)
            found: list[Difference] = []
            remaining: list[Difference] = []
            users, outdated, stored = 0, 0, Counter(dict.fromkeys(self.releases, 0))
            whole = self._lake_histories(element)
            lake = whole.of_type(self.settings.features.user_id_type)
            for batch, in_lake in self._slices(element, lake):
                users += len(batch.user_ids)
                compared = self._compare(batch, in_lake)
                stored.update(compared.rows)
                found += compared.differences
                if self._mender is not None and (wanted := compared.users()):
                    rows = _rows_of(wanted, batch.user_ids)
                    part = batch.take(rows)
                    self._mender.mend(part, compared.differences)
                    compared = self._compare(part, in_lake[rows])
                remaining += compared.differences
                outdated += len(compared.outdated)
            report = {
                "users": users,
                "unfit_ids": len(whole.user_ids) - len(lake.user_ids),
                "found": Counter(difference.kind for difference in found),
                "remaining": Counter(difference.kind for difference in remaining),
                "rows": stored,
                "outdated": outdated,
                "stale": Counter(each.release for each in remaining if each.kind == REVISION_BEHIND),
                "examples": [asdict(difference) for difference in found[:MAX_EXAMPLES]],
            }
            require_run(self.folder)
            Manifest(self.folder / "manifest").add(key, report)
        add_counts(NAMESPACE, {USERS: users, DIFFERENCES: len(found)})
        yield key

    def _lake_histories(self, buckets: Sequence[int]) -> UserBatch:
        settings = self.settings
        return newest_histories(
            open_lake(settings.lake), buckets, max_events=settings.history.max_events, as_of=settings.stream.as_of
        )

    def _slices(self, buckets: Sequence[int], lake: UserBatch) -> Iterator[tuple[UserBatch, npt.NDArray[np.bool_]]]:
        """The buckets' users (those only in the store come last, without events), and bool[U]: in the lake."""
        listed = chain.from_iterable(listed_users(self.folder / "online", bucket) for bucket in buckets)
        extra = sorted(set(listed).difference(lake.user_ids))
        both = UserBatch(
            [*lake.user_ids, *extra],
            concat([lake.histories, Histories.empty(len(extra))]),
            np.concatenate([lake.as_of_ms, np.zeros(len(extra), np.int64)]),
        )
        in_lake = np.arange(len(both.user_ids)) < len(lake.user_ids)
        for start in range(0, len(in_lake), SLICE_USERS):
            rows = np.arange(start, min(start + SLICE_USERS, len(in_lake)))
            yield both.take(rows), in_lake[rows]

    def _compare(self, batch: UserBatch, in_lake: npt.NDArray[np.bool_]) -> Compared:
        """Compares users that differ a second time: a writer may have written between the reads of a history and its
        embeddings."""
        encoders = list(self._encoders.values())
        compared = compare(self._online, encoders, batch, in_lake)
        if not compared.differences:
            return compared
        rows = _rows_of(compared.users(), batch.user_ids)
        again = compare(self._online, encoders, batch.take(rows), in_lake[rows])
        return Compared(again.differences, compared.rows, again.outdated)


class Mender:
    """Repairs users through the guarded writer, and publishes their stored rows."""

    def __init__(self, settings: BatchSettings, online: OnlineStore, compared: Sequence[Encoder]) -> None:
        self._online = online
        self._encoders = {encoder.release: encoder for encoder in compared}
        self._writer = GuardedWriter(online, compared, history=settings.history)
        self._journal = Journal(settings.state_folder / "jobs" / "unpublished")
        self._lake = open_lake(settings.lake)
        self._publisher: Publisher | None = open_publisher(settings.kafka, online, list(self._encoders))

    def close(self) -> None:
        if self._publisher is not None:
            self._publisher.close()

    def mend(self, batch: UserBatch, differences: Sequence[Difference]) -> None:
        """`batch`: the lake's histories of the users to write. Stored events that the lake lacks are kept; the lake's
        history replaces an unreadable one."""
        with self._journal.published(batch.user_ids, self._publisher):
            through = self._lake.forgotten.through(batch.user_ids)  # a restored store may have lost its markers
            self._writer.update(
                batch.user_ids,
                batch.histories,
                as_of_ms=batch.as_of_ms,
                forget_through=through,
                replace_unreadable=True,
            )
            for release, encoder in self._encoders.items():
                wrong = {d.user_id for d in differences if d.kind == EMBEDDING_DIFFERS and d.release == release}
                self._encode_again(encoder, sorted(wrong))

    def _encode_again(self, encoder: Encoder, user_ids: Sequence[str]) -> None:
        """Writes only the embedding, under the same revision; the store refuses it if the revision has changed."""
        if not user_ids:
            return
        users, histories, _ = read_histories(self._online, user_ids, [encoder.release])
        vectors, used = encoder.encode(histories)
        times, now_ms = histories.last_times(), time.time_ns() // 1_000_000
        writes = []
        for n, (user_id, user) in enumerate(zip(user_ids, users, strict=True)):
            if user.history is None:
                continue
            row = EmbeddingRow(
                user_id=user_id,
                embedding=vectors[n],
                revision=user.revision,
                events_used=int(used[n]),
                event_time_ms=int(times[n]),
                created_ms=max(user.as_of_ms, encoder.trained_through_ms),
                computed_at_ms=now_ms,
                model_version=encoder.release,
            )
            lengths = int(histories.lengths[n])
            writes.append(
                UserWrite(
                    user_id=user_id,
                    expected_revision=user.revision,
                    revision=user.revision,
                    history=user.history,
                    events=lengths,
                    event_time_ms=int(times[n]),
                    as_of_ms=user.as_of_ms,
                    embeddings=[row],
                )
            )
        self._online.write(writes)


def compare(
    online: OnlineStore, compared: Sequence[Encoder], batch: UserBatch, in_lake: npt.NDArray[np.bool_]
) -> Compared:
    """Differences between the lake's histories (`batch`) and the store. Embeddings are compared with the *stored*
    history, so a history that differs from the lake counts once, not once more per release."""
    user_ids = batch.user_ids
    users, histories, damaged = read_histories(online, user_ids, [encoder.release for encoder in compared])
    present = (histories.lengths > 0) | damaged  # a deleted user's marker row has no events and does not count
    equal = same_events(histories, batch.histories) & ~damaged
    outdated = equal & histories.hold_old_events()
    found: list[Difference] = []
    for n, user_id in enumerate(user_ids):
        if not present[n]:
            if in_lake[n]:
                found.append(Difference(user_id, MISSING_USER, "", f"{batch.histories.lengths[n]} events in the lake"))
            for release in (name for name, revision in users[n].embedding_revisions.items() if revision is not None):
                found.append(Difference(user_id, UNEXPECTED_USER, release, "an embedding without history"))
        elif damaged[n]:
            lake = (
                f"{batch.histories.lengths[n]} events in the lake"
                if in_lake[n]
                else "the lake has no event of the user"
            )
            found.append(Difference(user_id, UNREADABLE_HISTORY, "", f"its bytes cannot be read; {lake}"))
        elif not in_lake[n]:
            found.append(Difference(user_id, UNEXPECTED_USER, "", f"{histories.lengths[n]} events online"))
        elif not equal[n]:
            found.append(Difference(user_id, HISTORY_DIFFERS, "", _history_detail(batch.histories[n], histories[n])))
    checked: list[int] = np.flatnonzero(present & ~damaged).tolist()
    stored: Counter[str] = Counter()
    for encoder in compared:
        rows = online.read_embeddings(encoder.release, [user_ids[n] for n in checked]) if checked else []
        stored[encoder.release] = sum(row is not None for row in rows)
        found += _compare_embeddings(encoder, rows, user_ids, users, histories, checked)
    return Compared(found, stored, [user_ids[n] for n in np.flatnonzero(outdated)])


def _compare_embeddings(
    encoder: Encoder,
    rows: Sequence[EmbeddingRow | None],
    user_ids: Sequence[str],
    users: Sequence[StoredUser],
    histories: Histories,
    checked: list[int],
) -> list[Difference]:
    """`rows`: the stored rows of the users at indexes `checked`."""
    release = encoder.release
    vectors, _ = encoder.encode(histories.take(checked))
    found = []
    for vector, row, n in zip(vectors, rows, checked, strict=True):
        revision = users[n].revision
        have = users[n].embedding_revisions[release]
        if have != revision:
            detail = "no embedding" if have is None else f"embedding of revision {have}, history of {revision}"
            found.append(Difference(user_ids[n], REVISION_BEHIND, release, detail))
        elif row is None:
            found.append(
                Difference(user_ids[n], EMBEDDING_DIFFERS, release, "the stored row is incomplete or cannot be read")
            )
        elif not np.allclose(row.embedding, vector, rtol=0, atol=TOLERANCE):
            largest = float(np.abs(row.embedding - vector).max())
            found.append(
                Difference(user_ids[n], EMBEDDING_DIFFERS, release, f"by up to {number_text(largest, digits=3)}")
            )
    return found


def read_histories(
    online: OnlineStore, user_ids: Sequence[str], releases: Sequence[str]
) -> tuple[list[StoredUser], Histories, npt.NDArray[np.bool_]]:
    """The stored users, their histories (empty if missing or unreadable), and bool[U]: history is unreadable."""
    users = online.read(user_ids, releases) if user_ids else []
    histories, _, unreadable = unpack_readable([user.history for user in users])
    return users, histories, unreadable


def _rows_of(wanted: Collection[str], user_ids: Sequence[str]) -> npt.NDArray[np.int64]:
    return np.array([n for n, user in enumerate(user_ids) if user in wanted], np.int64)


def _history_detail(lake: Values, stored: Values) -> str:
    only_online = len(not_among(stored, lake))
    return (
        f"{len(stored)} events online, {len(lake)} in the lake: {only_online} only online, "
        f"{len(lake) - (len(stored) - only_online)} only in the lake"
    )
