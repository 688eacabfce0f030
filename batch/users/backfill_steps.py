"""The DoFns of a backfill: read user buckets, encode and write a slice of users, write item vectors.

`EncodeAndWrite.setup` opens stores, publisher and models; slices pass between steps as Arrow tables.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Literal

import apache_beam as beam
import numpy as np
import pyarrow as pa

from spoor.activity.fields import is_of_type
from spoor.activity.history import equal_rows
from spoor.activity.lake import open_lake
from spoor.activity.packing import pack
from spoor.activity.settings import LakeSettings
from spoor.batch.jobs import add_counts
from spoor.batch.kafka.publish import Journal, Note, Publisher, open_publisher
from spoor.batch.releases import encoders
from spoor.batch.settings import BatchSettings
from spoor.batch.users.backfill_plan import BackfillPlan, items_key, slice_key, spans_left
from spoor.batch.users.histories import (
    SLICE_USERS,
    Span,
    UserBatch,
    newest_histories,
    newest_slices,
    snapshot_slices,
)
from spoor.feature_repo.settings import FeatureSettings
from spoor.kernels.settings import KernelSettings
from spoor.store.encoding import Encoder
from spoor.store.offline import open_offline
from spoor.store.online import open_online
from spoor.store.rows import EmbeddingRow, UserWrite, check_vectors
from spoor.store.writer import GuardedWriter, UpdateResult

NAMESPACE = "spoor.backfill"
ROWS = "rows"  # users, or users × snapshot times
CHANGED = "changed"  # users whose history online changed
EMBEDDINGS = "embeddings"  # written online, of all live releases
REFUSED = "refused"  # writes retried because another writer had changed the user
PUBLISHED = "published"  # users
OFFLINE_ROWS = "offline_rows"  # embeddings in the offline log
READABLE_ROWS = "readable_rows"  # of these: created at or before the job's last time
ROWS_IN_TIME = "rows_in_time"  # of these: created at their own snapshot's time
ITEM_VECTORS = "item_vectors"
UNFIT_IDS = "unfit_ids"  # users of the lake and items whose ids Feast's entities cannot hold: left out
NOTED = (
    ROWS, CHANGED, EMBEDDINGS, REFUSED, PUBLISHED, OFFLINE_ROWS, READABLE_ROWS, ROWS_IN_TIME, ITEM_VECTORS, UNFIT_IDS,
)  # fmt: skip
ENCODE_FAILURES = "encode_failures"  # embeddings that could not be computed; their slices are not noted
_LOG = logging.getLogger(__name__)
NOT_STORED = 0  # revision of a row computed from the lake that is not the store's row


@dataclass(frozen=True, eq=False)
class Slice:
    """Users of a group of buckets (BATCH_SCHEMA). The key contains the span of places that the slice covers."""

    key: str
    table: pa.Table


@dataclass(eq=False)
class ReadBuckets(beam.DoFn):
    """Group of user buckets → slices of histories that the manifest does not cover, from the lake's items at the start.
    If a forget or an archive removes or adds users between two tries, other users keep their places."""

    lake: LakeSettings
    max_events: int
    as_of: Literal["append", "event"]
    plan: BackfillPlan
    slice_users: int = field(default=SLICE_USERS, kw_only=True)

    def process(self, element: tuple[int, ...]) -> Iterator[Slice]:  # pyright: ignore[reportIncompatibleMethodOverride]
        failures = self.plan.failures
        with failures.recorded():
            spans = spans_left(element, self.plan.options, self.plan.manifest.keys())
            slices = self._slices(element, spans) if spans else iter(())
        while True:
            with failures.recorded():
                following = next(slices, None)
            if following is None:
                return
            span, batch = following
            yield Slice(slice_key(element, span), batch.to_arrow())

    def _slices(self, buckets: tuple[int, ...], spans: list[Span]) -> Iterator[tuple[Span, UserBatch]]:
        lake, options = open_lake(self.lake, items=self.plan.lake_items), self.plan.options
        if options.snapshots:
            return snapshot_slices(
                lake,
                buckets,
                spans,
                times_ms=options.snapshots,
                max_events=self.max_events,
                as_of=self.as_of,
                slice_users=self.slice_users,
            )
        batch = newest_histories(lake, buckets, max_events=self.max_events, to_ms=options.as_of_ms, as_of=self.as_of)
        return newest_slices(batch, spans, slice_users=self.slice_users)


@dataclass(eq=False)
class EncodeAndWrite(beam.DoFn):
    """Slice → online store, embedding topics, offline log, manifest. Yields the slice's key; skips a slice that the
    manifest already holds."""

    settings: BatchSettings
    plan: BackfillPlan

    def setup(self) -> None:
        with self.plan.failures.recorded():
            self._encoders = encoders(self.settings.features, self.settings.kernels, self.plan.written)
            self._lake = open_lake(self.settings.lake)
            self._offline = open_offline(self.settings.features)
            self._journal = Journal(self.settings.state_folder / "jobs" / "unpublished")
            self._publisher = None
            self._started_ms = 0
            if self.plan.options.online:
                online = open_online(self.settings.features)
                self._writer = GuardedWriter(
                    online, list(self._encoders.values()), history=self.settings.history, now_ms=self._now_ms
                )
                if self.plan.options.publish:
                    self._publisher = open_publisher(self.settings.kafka, online, self.plan.written)

    def teardown(self) -> None:
        publisher: Publisher | None = getattr(self, "_publisher", None)
        if publisher is not None:
            publisher.close()

    def process(self, element: Slice) -> Iterator[str]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self.plan.manifest.get(element.key) is not None:
            return
        with self.plan.failures.recorded():
            whole = UserBatch.from_arrow(element.table)
            batch = whole.of_type(self.settings.features.user_id_type)
            unfit = len(whole.user_ids) - len(batch.user_ids)
            if unfit:
                _LOG.warning("%d users of the lake have ids that are no int64: they get no rows", unfit)
            batch = self._without_past(batch)
            counts = {ROWS: len(batch.user_ids), UNFIT_IDS: unfit}
            result = self._write_online(batch, counts) if self.plan.options.online else None
            if self.plan.options.offline and not counts.get(ENCODE_FAILURES):
                self._write_offline(element.key, batch, result, counts)
            if not counts.get(ENCODE_FAILURES):
                self.plan.manifest.add(element.key, counts)
        add_counts(NAMESPACE, counts)
        yield element.key

    def _without_past(self, batch: UserBatch) -> UserBatch:
        """Drops events up to their user's cut-off: a cluster may keep working after its driver has died, and a forget
        may then run after the slice was read."""
        histories = batch.histories.after(self._lake.forgotten.through(batch.user_ids))
        left = np.flatnonzero(histories.lengths)
        return UserBatch(batch.user_ids, histories, batch.as_of_ms).take(left)

    def _write_online(self, batch: UserBatch, counts: dict[str, int]) -> UpdateResult:
        with self._journal.noted(batch.user_ids) if self.plan.options.publish else nullcontext() as note:
            return self._write_noted(batch, counts, note)

    def _write_noted(self, batch: UserBatch, counts: dict[str, int], note: Note | None) -> UpdateResult:
        self._started_ms = _wall_ms()
        result = self._writer.update(
            batch.user_ids,
            batch.histories,
            as_of_ms=batch.as_of_ms,
            forget_through=self._lake.forgotten.through(batch.user_ids),  # a store that lost its data lost its markers
            replace_unreadable=True,
        )
        counts[CHANGED] = int(result.changed.sum())
        fresh = {
            release: [row for row in rows if row.computed_at_ms >= self._started_ms]
            for release, rows in result.rows.items()
        }
        counts[EMBEDDINGS] = sum(map(len, fresh.values()))
        counts[REFUSED] = result.refused
        counts[ENCODE_FAILURES] = result.encode_failures
        if note is not None and self._publisher is not None:
            counts[PUBLISHED] = self._publisher.publish(fresh)
            note.done()
        return result

    def _now_ms(self) -> int:
        """The writer's clock. It is never before the start of the slice, so it identifies the rows of this slice."""
        return max(_wall_ms(), self._started_ms)

    def _write_offline(self, key: str, batch: UserBatch, result: UpdateResult | None, counts: dict[str, int]) -> None:
        options, item = self.plan.options, f"{self.plan.offline_key}-{key}"
        self._offline.write_histories(item, list(_history_writes(batch, result)))
        times, last = options.snapshots, options.last_ms
        counts |= {OFFLINE_ROWS: 0, READABLE_ROWS: 0, ROWS_IN_TIME: 0}
        for release in options.releases:
            embeddings = embedding_rows(batch, self._encoders[release], result)
            self._offline.write_embeddings(release, item, embeddings)
            created = np.array([row.created_ms for row in embeddings], np.int64)
            in_time = np.isin(batch.as_of_ms, times) & (created == batch.as_of_ms) if times else np.ones(len(created))
            counts[OFFLINE_ROWS] += len(embeddings)
            counts[READABLE_ROWS] += int((created <= last).sum()) if last is not None else len(created)
            counts[ROWS_IN_TIME] += int(in_time.sum() if times or last is None else (created <= last).sum())


@dataclass(eq=False)
class WriteItems(beam.DoFn):
    """Release → its item vectors, written to its item view and the offline log; yields the work item's key."""

    features: FeatureSettings
    kernels: KernelSettings
    plan: BackfillPlan

    def process(self, element: str) -> Iterator[str]:  # pyright: ignore[reportIncompatibleMethodOverride]
        with self.plan.failures.recorded():
            encoder = encoders(self.features, self.kernels, [element])[element]
            fit = [n for n, item in enumerate(encoder.item_ids) if is_of_type(item, self.features.item_id_type)]
            if unfit := len(encoder.item_ids) - len(fit):
                _LOG.warning("%d items of release %s have ids that are no int64: they get no vector", unfit, element)
            item_ids, vectors = [encoder.item_ids[n] for n in fit], encoder.item_vectors(encoder.item_hashes[fit])
            created_ms = encoder.trained_through_ms
            if self.plan.options.online:
                open_online(self.features).write_items(element, item_ids, vectors, created_ms)
            if self.plan.options.offline:
                open_offline(self.features).write_items(element, items_key(element), item_ids, vectors, created_ms)
            self.plan.manifest.add(items_key(element), {ITEM_VECTORS: len(vectors), UNFIT_IDS: unfit})
        add_counts(NAMESPACE, {ITEM_VECTORS: len(vectors)})
        yield items_key(element)


def embedding_rows(batch: UserBatch, encoder: Encoder, result: UpdateResult | None) -> list[EmbeddingRow]:
    """One row per row of the batch, from the lake's histories. Reuses an embedding of `result` (the online write) if
    its history is equal; a merged history may hold later events. Raises DataError for vectors that are not finite or
    not of norm 1."""
    stored = _same_as_stored(batch, result, encoder.release)
    computed = np.array([row for row, found in enumerate(stored) if found is None], np.int64)
    histories = batch.histories.take(computed)
    vectors, used = encoder.encode(histories)
    check_vectors(vectors, used, encoder.release, encoder.dimension)
    now_ms, times = _wall_ms(), histories.last_times()
    rows = list(stored)
    for n, row in enumerate(computed.tolist()):
        rows[row] = EmbeddingRow(
            user_id=batch.user_ids[row],
            embedding=vectors[n],
            revision=NOT_STORED,
            events_used=int(used[n]),
            event_time_ms=int(times[n]),
            created_ms=0,
            computed_at_ms=now_ms,
            model_version=encoder.release,
        )
    created = np.maximum(batch.as_of_ms, encoder.trained_through_ms).tolist()
    return [replace(row, created_ms=at) for row, at in zip(rows, created, strict=True) if row is not None]


def _same_as_stored(batch: UserBatch, result: UpdateResult | None, release: str) -> list[EmbeddingRow | None]:
    if result is None:
        return [None] * len(batch.user_ids)
    rows = {row.user_id: row for row in result.rows[release]}
    same = equal_rows(batch.histories, result.histories)
    return [
        row if same[n] and (row := rows.get(user)) is not None and row.revision == result.revisions[n] else None
        for n, user in enumerate(batch.user_ids)
    ]


def _history_writes(batch: UserBatch, result: UpdateResult | None) -> Iterable[UserWrite]:
    same = None if result is None else equal_rows(batch.histories, result.histories)
    packed, times, lengths = pack(batch.histories), batch.histories.last_times(), batch.histories.lengths
    for n, user in enumerate(batch.user_ids):
        yield UserWrite(
            user_id=user,
            expected_revision=NOT_STORED,
            revision=int(result.revisions[n]) if result is not None and same is not None and same[n] else NOT_STORED,
            history=packed[n],
            events=int(lengths[n]),
            event_time_ms=int(times[n]),
            as_of_ms=int(batch.as_of_ms[n]),
            embeddings=[],
        )


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000
