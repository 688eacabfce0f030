"""`spoor backfill`: writes every user's history and embeddings from the lake to the online store and the offline log.

Work items are user buckets, small ones grouped. They are read once and passed on as slices (Arrow tables of up to
SLICE_USERS users). Each slice is encoded, written and noted in state_folder/jobs/backfill-<id>/manifest by the span of
user hashes that it covers. A resumed run skips noted slices.

Online, the guarded writer merges histories: a backfill may race a stream, another backfill, or itself. Offline,
histories come only from the lake, because the store's may hold events from after the as-of time.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import apache_beam as beam
from prometheus_client.metrics_core import Metric

from spoor.activity.lake import open_lake
from spoor.base.locks import exclusive
from spoor.batch.job_metrics import JobMetrics, gauge
from spoor.batch.jobs import LOCAL, Runner, run_pipeline, spread
from spoor.batch.kafka.publish import publish_left
from spoor.batch.kafka.retention import iso_time
from spoor.batch.progress import progress
from spoor.batch.releases import Releases, choose_releases
from spoor.batch.settings import BatchSettings
from spoor.batch.users.backfill_plan import BackfillPlan, Into, backfill_options, plan_backfill
from spoor.batch.users.backfill_steps import (
    ENCODE_FAILURES,
    NAMESPACE,
    NOTED,
    ROWS,
    EncodeAndWrite,
    ReadBuckets,
    WriteItems,
)
from spoor.batch.users.sweep import Swept, sweep
from spoor.encoder.release.info import read_info, short_histories
from spoor.feature_repo.names import USER_HISTORY, user_embedding_view
from spoor.store.offline import open_offline, warn_of_offline_store
from spoor.store.online import OnlineStore, open_online

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class BackfillResult:
    """Counts from `rows` (users, or users × snapshot times) to `item_vectors` and `unfit_ids` include earlier runs of
    the job; `swept`, the failures and the times are this run's."""

    job: str
    releases: tuple[str, ...]
    as_of_ms: int | None
    snapshots: int
    items: int  # work items: groups of user buckets, and one per release's item vectors
    skipped: int  # of these: finished by an earlier run
    dry_run: bool
    online: bool = True  # whether the job writes the online store
    offline: bool = True  # whether the job writes the offline log
    rows: int = 0
    changed: int = 0  # users whose history online changed
    embeddings: int = 0  # written online, of all live releases; without those of the sweep
    refused: int = 0  # writes retried because another writer had changed the user
    published: int = 0  # users
    offline_rows: int = 0  # embeddings in the offline log
    readable_rows: int = 0  # of these: visible to a point-in-time read at the job's last time
    rows_in_time: int = 0  # of these: visible to a read at their own snapshot's time
    last_ms: int | None = None  # the job's last time; None: the present
    item_vectors: int = 0
    not_applied: tuple[str, ...] = ()  # live releases that Feast does not know: left out
    unfit_ids: int = 0  # users of the lake and items whose ids are no int64: left out
    swept: int = 0  # users with stale embeddings encoded again at the end, counted per pass
    encode_failures: int = 0  # embeddings not computed; their slices are not noted: run again with resume
    unwritten: tuple[str, ...] = ()  # releases that some worker did not write at the end
    seconds: float = 0.0
    users_per_second: float = 0.0

    def text(self) -> str:
        """The text output."""
        if self.dry_run:
            return f"{self.job}: {self.items:,} work items, {self.skipped:,} of them finished before"
        done = [f"{self.rows:,} rows at {self.snapshots:,} times" if self.snapshots else f"{self.rows:,} users"]
        if self.online:
            done.append(f"{self.changed:,} histories and {self.embeddings:,} embeddings written online")
        if self.offline:
            done.append(f"{self.offline_rows:,} embeddings to the offline log")
        done.append(f"{self.item_vectors:,} item vectors in {self.seconds:.1f} s")
        text = f"{', '.join(self.releases)}: {', '.join(done)}"
        if self.skipped:
            text += f" ({self.skipped:,} of {self.items:,} work items by an earlier run)"
        if not self.rows:
            earlier = "" if self.as_of_ms is None and not self.snapshots else " from before that time"
            text += f"; the lake holds no events{earlier}: run `spoor archive` first"
        if self.swept:
            text += f"; {self.swept:,} times an embedding was behind its history at the end, and was computed again"
        if self.unreadable is not None:
            text += f"; {self.unreadable}"
        return text

    @property
    def unreadable(self) -> str | None:
        """A message about offline rows that a point-in-time read misses at their time: their model was trained through
        a later time, or their events were appended later. None if there are none."""
        if self.last_ms is None or self.rows_in_time == self.offline_rows:
            return None
        way_out = 'train with `spoor pretrain --until`, or set stream.as_of = "event" for imported events'
        if self.readable_rows < self.offline_rows:
            return (
                f"{self.readable_rows:,} of {self.offline_rows:,} rows readable before {iso_time(self.last_ms)}: "
                f"the release was trained through a later time, or the events were appended later; {way_out}"
            )
        return f"{self.rows_in_time:,} of {self.offline_rows:,} rows readable at their snapshot's time; {way_out}"


def run_backfill(
    settings: BatchSettings,
    *,
    releases: Sequence[str] | Releases | None = None,
    as_of_ms: int | None = None,
    snapshots: tuple[int, int, int] | None = None,
    into: Into = "both",
    publish: bool = True,
    resume: bool = False,
    dry_run: bool = False,
    runner: Runner = LOCAL,
    unwritten: Callable[[Sequence[str]], Sequence[str]] = lambda releases: (),
) -> BackfillResult:
    """Backfills `releases` (default: all live ones) with the lake's events before `as_of_ms` (default: all), or with
    `snapshots` (from, to, every; ms) for the offline log: at each time, the users that have changed since the previous
    one. `into`: the stores to write; snapshots need "offline".

    A row's created time is the later of its as-of time and the release's trained-through time. `publish` sends rows
    that changed online to the embedding topics. An online backfill ends with a sweep of stale embeddings; `unwritten`
    returns those of the given releases that some running worker does not write. Raises UsageError, DataError,
    InfrastructureError.
    """
    started = time.monotonic()
    metrics = JobMetrics(settings.state_folder, "backfill")
    found = releases if isinstance(releases, Releases) else choose_releases(settings, releases)
    options = backfill_options(found.chosen, as_of_ms, snapshots, into, publish=publish)
    infos = [read_info(settings.features.releases_folder / name) for name in options.releases]
    if warning := short_histories(infos, kept=settings.history.max_events):
        _LOG.warning(warning)
    lake = open_lake(settings.lake)
    with exclusive(settings.state_folder / "jobs" / "backfill.lock", job="spoor backfill"):
        ends = lake.ends()
        plan = plan_backfill(settings, lake, options, found, resume=resume)
        _LOG.info("%s: %d work items, %d finished before", plan.job, plan.left, plan.finished)
        result = BackfillResult(
            job=plan.job,
            releases=options.releases,
            as_of_ms=as_of_ms,
            snapshots=len(options.snapshots),
            items=plan.left + plan.finished,
            skipped=plan.finished,
            dry_run=dry_run,
            online=options.online,
            offline=options.offline,
            last_ms=options.last_ms,
            not_applied=found.not_applied,
        )
        if dry_run:
            return replace(result, seconds=time.monotonic() - started)
        if not resume:
            shutil.rmtree(plan.folder, ignore_errors=True)
        store = open_online(settings.features) if options.online else None
        counts = _run(settings, store, plan, metrics, runner=runner)
        if store is not None and as_of_ms is None:
            lake.note_backfilled(ends)
        # Releases that no worker writes get stale with the next event, so they are not swept.
        streamed = [name for name in options.releases if name in (settings.stream.releases or options.releases)]
        swept = Swept()
        if store is not None and streamed and not counts.get(ENCODE_FAILURES):
            swept = sweep(settings, store, streamed, publish=options.publish, unwritten=unwritten)
    seconds = time.monotonic() - started
    totals: Counter[str] = Counter()
    for record in plan.manifest.records().values():
        totals.update(record)
    result = replace(
        result,
        **{name: totals[name] for name in NOTED},
        swept=swept.users,
        encode_failures=counts.get(ENCODE_FAILURES, 0) + swept.encode_failures,
        unwritten=swept.unwritten,
        seconds=seconds,
        users_per_second=counts.get(ROWS, 0) / seconds,
    )
    metrics.ended(*figures(result))
    return result


def figures(result: BackfillResult) -> list[Metric]:
    """The result as Prometheus metrics."""
    failures = result.encode_failures
    return [
        gauge("spoor_backfill_rows", "users, or users and snapshot times, of the last backfill", result.rows),
        gauge("spoor_backfill_changed_users", "users whose history the last backfill changed online", result.changed),
        gauge("spoor_backfill_embeddings", "embeddings that the last backfill wrote online", result.embeddings),
        gauge("spoor_backfill_encode_failures", "embeddings that the last backfill could not compute", failures),
    ]


def build(pipeline: beam.Pipeline, settings: BatchSettings, plan: BackfillPlan) -> object:
    """The pipeline: user buckets → slices of histories → stores; and releases → item vectors."""
    if plan.item_releases:
        _ = (
            pipeline
            | "List releases" >> beam.Create(plan.item_releases, reshuffle=False)
            | "Write item vectors" >> beam.ParDo(WriteItems(settings.features, settings.kernels, plan))
        )
    reading = ReadBuckets(settings.lake, settings.history.max_events, settings.stream.as_of, plan)
    return (
        spread(pipeline, plan.groups, "user buckets")
        | "Read histories of buckets" >> beam.ParDo(reading)
        | "Encode and write histories" >> beam.ParDo(EncodeAndWrite(settings, plan))
    )


def _run(
    settings: BatchSettings, store: OnlineStore | None, plan: BackfillPlan, metrics: JobMetrics, *, runner: Runner
) -> dict[str, int]:
    publishes = store if plan.options.publish else None
    if store is not None:
        store.check(plan.written)
        store.require_durable()
    if publishes is not None:
        publish_left(settings, publishes, plan.written)
    if not plan.left:
        return {}
    if plan.options.offline and store is not None:
        warn_of_offline_store(store.feast.config)
    with progress("backfill", total=plan.left, finished=plan.finished_items, metrics=metrics):
        counts = run_pipeline(
            lambda pipeline: build(pipeline, settings, plan),
            runner=runner,
            failures=plan.failures,
            namespace=NAMESPACE,
        )
    if publishes is not None:
        publish_left(settings, publishes, plan.written)  # a runner may have lost a try
    if plan.options.offline and not counts.get(ENCODE_FAILURES):
        _remove_replaced(settings, plan)
    return counts


def _remove_replaced(settings: BatchSettings, plan: BackfillPlan) -> None:
    """Removes offline items that an earlier job of the same times wrote and this one did not replace: the earlier job
    may have cut its slices elsewhere."""
    offline = open_offline(settings.features)
    prefix = f"{plan.offline_key}-"
    written = {f"{prefix}{key}" for key in plan.manifest.records()}

    def left(view: str) -> list[str]:
        return [key for key in offline.manifest(view).records() if key.startswith(prefix) and key not in written]

    for key in left(settings.features.named(USER_HISTORY)):
        offline.write_histories(key, [])
    for release in plan.options.releases:
        for key in left(settings.features.named(user_embedding_view(release))):
            offline.write_embeddings(release, key, [])
