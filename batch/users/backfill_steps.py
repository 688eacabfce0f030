"""The steps of a backfill as Beam runs them: read user buckets, encode and write a slice of them, write item vectors.

Servers, files and models are opened in `setup`, once per process; what crosses between steps is an Arrow table.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.metrics.metric import Metrics

from spoor.activity.fields import is_of_type
from spoor.activity.history import equal_rows
from spoor.activity.lake import open_lake
from spoor.activity.packing import pack
from spoor.base.files import Manifest
from spoor.batch.jobs import Failures
from spoor.batch.kafka.kafka_source import gaps
from spoor.batch.kafka.publish import Journal, Note, Publisher, open_publisher
from spoor.batch.releases import encoders
from spoor.batch.settings import BatchSettings
from spoor.batch.users.histories import (
    PLACES,
    SLICE_USERS,
    Span,
    UserBatch,
    newest_histories,
    newest_slices,
    snapshot_slices,
)
from spoor.store.offline import open_offline
from spoor.store.online import open_online
from spoor.store.rows import EmbeddingRow, UserWrite
from spoor.store.validation import check_vectors
from spoor.store.writer import Encoder, GuardedWriter, UpdateResult

NAMESPACE = "spoor.backfill"
ROWS = "rows"  # users, or users × snapshot times
CHANGED = "changed"  # users whose history online changed
EMBEDDINGS = "embeddings"  # written online, of all live releases
REFUSED = "refused"  # writes done again because somebody else had written
PUBLISHED = "published"  # users
OFFLINE_ROWS = "offline_rows"  # embeddings in the offline log
READABLE_ROWS = "readable_rows"  # of these, known at the job's last time
ROWS_IN_TIME = "rows_in_time"  # of these, known at their own snapshot's time
ITEM_VECTORS = "item_vectors"
UNFIT_IDS = "unfit_ids"  # users and items of the lake that Feast's entities cannot hold: left out
ENCODE_FAILURES = "encode_failures"  # embeddings that could not be computed; their slice is not noted as done
_LOG = logging.getLogger(__name__)
NOT_STORED = 0  # revision of a row that was computed from the lake and is not the store's


@dataclass(frozen=True)
class BackfillOptions:
    """What a job computes and where it puts it; part of its id."""

    releases: tuple[str, ...]  # offline rows and item vectors; online, every live release is kept whole
    as_of_ms: int | None  # events before this; None = every event of the lake
    snapshots: tuple[int, ...]  # times in ms, ascending; empty = one state
    online: bool
    offline: bool
    publish: bool


@dataclass(frozen=True, eq=False)
class Slice:
    """Some users of a group of buckets (BATCH_SCHEMA). The key tells which places it covers."""

    key: str
    table: pa.Table


def items_key(release: str) -> str:
    """The work item of a release's item vectors."""
    return f"items-{release}"


def group_key(buckets: Sequence[int]) -> str:
    """The work item of a group of user buckets."""
    return f"b{buckets[0]:02d}"


def slice_key(buckets: Sequence[int], span: Span) -> str:
    """The manifest's key of a slice of a group."""
    return f"{group_key(buckets)}-{span[0]:012x}-{span[1]:012x}"


def spans_left(buckets: Sequence[int], options: BackfillOptions, noted: Collection[str]) -> list[Span]:
    """The places of the group that no slice among the manifest's keys covers; none when the group is finished."""
    prefix = f"{group_key(buckets)}-"
    covered = [key.removeprefix(prefix).split("-") for key in noted if key.startswith(prefix)]
    spans = sorted((int(start, 16), int(end, 16)) for start, end in covered)
    return gaps(spans, begin=0, high=PLACES * max(len(options.snapshots), 1))


class ReadBuckets(beam.DoFn):
    """Group of user buckets → the histories in slices that the manifest does not cover, of the lake's items at the
    start. Who comes or goes between two tries of a job, by a forget or an archive, moves nobody else."""

    def __init__(
        self,
        settings: BatchSettings,
        options: BackfillOptions,
        lake_items: Collection[str],
        manifest: Manifest,
        failures: Failures,
        *,
        slice_users: int = SLICE_USERS,
    ) -> None:
        self._settings = settings
        self._options = options
        self._lake_items = lake_items
        self._manifest = manifest
        self._failures = failures
        self._slice_users = slice_users

    def process(self, element: tuple[int, ...]) -> Iterator[Slice]:  # pyright: ignore[reportIncompatibleMethodOverride]
        with self._failures.recorded():
            spans = spans_left(element, self._options, self._manifest.keys())
            slices = self._slices(element, spans) if spans else iter(())
        while True:
            with self._failures.recorded():
                following = next(slices, None)
            if following is None:
                return
            span, batch = following
            yield Slice(slice_key(element, span), batch.to_arrow())

    def _slices(self, buckets: tuple[int, ...], spans: list[Span]) -> Iterator[tuple[Span, UserBatch]]:
        lake, options = open_lake(self._settings.lake, items=self._lake_items), self._options
        max_events, as_of = self._settings.history.max_events, self._settings.stream.as_of
        if options.snapshots:
            return snapshot_slices(
                lake,
                buckets,
                spans,
                times_ms=options.snapshots,
                max_events=max_events,
                as_of=as_of,
                slice_users=self._slice_users,
            )
        batch = newest_histories(lake, buckets, max_events=max_events, to_ms=options.as_of_ms, as_of=as_of)
        return newest_slices(batch, spans, slice_users=self._slice_users)


class EncodeAndWrite(beam.DoFn):
    """Slice → online store, embedding topics, offline log, manifest. Yields the slice's key; one that the manifest
    already holds is passed over."""

    def __init__(
        self,
        settings: BatchSettings,
        options: BackfillOptions,
        written: Sequence[str],
        job: str,
        manifest: Manifest,
        failures: Failures,
    ) -> None:
        """`written`: the releases to encode with; all live ones where the job writes online."""
        self._settings = settings
        self._options = options
        self._written = list(written)
        self._job = job
        self._manifest = manifest
        self._failures = failures

    def setup(self) -> None:
        with self._failures.recorded():
            self._encoders = encoders(self._settings, self._written)
            self._lake = open_lake(self._settings.lake)
            self._offline = open_offline(self._settings.features)
            self._journal = Journal(self._settings.state_folder / "jobs" / "unpublished")
            self._publisher = None
            self._started_ms = 0
            if self._options.online:
                online = open_online(self._settings.features)
                self._writer = GuardedWriter(
                    online, list(self._encoders.values()), history=self._settings.history, now_ms=self._now_ms
                )
                if self._options.publish:
                    self._publisher = open_publisher(self._settings.kafka, online, self._written)

    def teardown(self) -> None:
        publisher: Publisher | None = getattr(self, "_publisher", None)
        if publisher is not None:
            publisher.close()

    def process(self, element: Slice) -> Iterator[str]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self._manifest.get(element.key) is not None:
            return
        with self._failures.recorded():
            whole = UserBatch.from_arrow(element.table)
            batch = whole.of_type(self._settings.features.user_id_type)
            unfit = len(whole.user_ids) - len(batch.user_ids)
            if unfit:
                _LOG.warning("%d users of the lake have ids that are no int64: they get no rows", unfit)
            batch = self._without_past(batch)
            counts = {ROWS: len(batch.user_ids), UNFIT_IDS: unfit}
            result = self._write_online(batch, counts) if self._options.online else None
            if self._options.offline and not counts.get(ENCODE_FAILURES):
                self._write_offline(element.key, batch, result, counts)
            if not counts.get(ENCODE_FAILURES):
                self._manifest.add(element.key, counts)
        for name, count in counts.items():
            Metrics.counter(NAMESPACE, name).inc(count)
        yield element.key

    def _without_past(self, batch: UserBatch) -> UserBatch:
        """A cluster may work on when its driver is dead, and a forget then run between the reading of the slice and
        this."""
        histories = batch.histories.after(self._lake.forgotten.through(batch.user_ids))
        left = np.flatnonzero(histories.lengths)
        return UserBatch(batch.user_ids, histories, batch.as_of_ms).take(left)

    def _write_online(self, batch: UserBatch, counts: dict[str, int]) -> UpdateResult:
        with self._journal.noted(batch.user_ids) if self._options.publish else nullcontext() as note:
            return self._write_noted(batch, counts, note)

    def _write_noted(self, batch: UserBatch, counts: dict[str, int], note: Note | None) -> UpdateResult:
        self._started_ms = _wall_ms()
        result = self._writer.update(
            batch.user_ids,
            batch.histories,
            as_of_ms=batch.as_of_ms,
            forget_through=self._lake.forgotten.through(batch.user_ids),  # a store that was lost has lost its markers
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
        """The writer's clock. It never runs behind the start of a slice, so rows of this slice can be told by it."""
        return max(_wall_ms(), self._started_ms)

    def _write_offline(self, key: str, batch: UserBatch, result: UpdateResult | None, counts: dict[str, int]) -> None:
        item = f"{offline_key(self._options, self._job)}-{key}"
        self._offline.write_histories(item, list(_history_writes(batch, result)))
        times, last = self._options.snapshots, last_time(self._options)
        counts |= {OFFLINE_ROWS: 0, READABLE_ROWS: 0, ROWS_IN_TIME: 0}
        for release in self._options.releases:
            embeddings = embedding_rows(batch, self._encoders[release], result)
            self._offline.write_embeddings(release, item, embeddings)
            created = np.array([row.created_ms for row in embeddings], np.int64)
            in_time = np.isin(batch.as_of_ms, times) & (created == batch.as_of_ms) if times else np.ones(len(created))
            counts[OFFLINE_ROWS] += len(embeddings)
            counts[READABLE_ROWS] += int((created <= last).sum()) if last is not None else len(created)
            counts[ROWS_IN_TIME] += int(in_time.sum() if times or last is None else (created <= last).sum())


class WriteItems(beam.DoFn):
    """Release → the vectors of the items it knows, into its item view and the offline log; yields the work item's
    key."""

    def __init__(
        self, settings: BatchSettings, options: BackfillOptions, manifest: Manifest, failures: Failures
    ) -> None:
        self._settings = settings
        self._options = options
        self._manifest = manifest
        self._failures = failures

    def process(self, element: str) -> Iterator[str]:  # pyright: ignore[reportIncompatibleMethodOverride]
        with self._failures.recorded():
            encoder = encoders(self._settings, [element])[element]
            features = self._settings.features
            fit = [n for n, item in enumerate(encoder.item_ids) if is_of_type(item, features.item_id_type)]
            if unfit := len(encoder.item_ids) - len(fit):
                _LOG.warning("%d items of release %s have ids that are no int64: they get no vector", unfit, element)
            item_ids, vectors = [encoder.item_ids[n] for n in fit], encoder.item_vectors(encoder.item_hashes[fit])
            created_ms = encoder.trained_through_ms
            if self._options.online:
                open_online(features).write_items(element, item_ids, vectors, created_ms)
            if self._options.offline:
                open_offline(features).write_items(element, items_key(element), item_ids, vectors, created_ms)
            self._manifest.add(items_key(element), {ITEM_VECTORS: len(vectors), UNFIT_IDS: unfit})
        Metrics.counter(NAMESPACE, ITEM_VECTORS).inc(len(vectors))
        yield items_key(element)


def last_time(options: BackfillOptions) -> int | None:
    """The newest time of the past that the job computes; None for one that computes the present."""
    return options.snapshots[-1] if options.snapshots else options.as_of_ms


def offline_key(options: BackfillOptions, job: str) -> str:
    """The first part of the names of a job's offline files. Times that are given stand for themselves, so a later job
    with the same times replaces the rows; a backfill of the present adds its own beside those of earlier days."""
    if options.snapshots:
        first, last = options.snapshots[0], options.snapshots[-1]
        return f"snapshots-{first}-{last}-{len(options.snapshots)}"
    return job if options.as_of_ms is None else f"as-of-{options.as_of_ms}"


def embedding_rows(batch: UserBatch, encoder: Encoder, result: UpdateResult | None) -> list[EmbeddingRow]:
    """One row per row of the batch, from the lake's histories. What `result` (of the online write) has computed from
    the same history is used again; a merged history may hold later events and is not. Raises DataError for vectors
    that are not finite or not of norm 1."""
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
