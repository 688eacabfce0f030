"""`spoor verify`: compares the online store with the lake and reports every difference; `--repair` writes again.

Work items are user buckets, small ones grouped. Stored histories are compared with the lake's newest events, and every
live release's embeddings with those that its encoder computes from the stored histories. Users in the store and not in
the lake are differences too: the driver first lists the store's users by bucket in files, so memory stays bounded.

A repair uses the guarded writer like any other update, so it merges: an event that is online and not in the lake is
kept and still reported. Most such events are in Kafka and not archived yet; `lag` counts them.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass, field, replace

from prometheus_client.metrics_core import Metric

from spoor.activity.lake import Lake, open_lake
from spoor.base.errors import SpoorError
from spoor.base.files import Manifest
from spoor.base.locks import exclusive
from spoor.batch.job_metrics import JobMetrics, gauge, gauges
from spoor.batch.jobs import LOCAL, Failures, Runner, run_items
from spoor.batch.kafka.kafka_source import RangeReader, gaps
from spoor.batch.kafka.publish import publish_left
from spoor.batch.progress import progress
from spoor.batch.releases import choose_releases
from spoor.batch.settings import BatchSettings
from spoor.batch.users.histories import bucket_groups
from spoor.batch.users.listing import list_users, listing_folder
from spoor.batch.users.verify_steps import (
    KINDS,
    LAKE_LACKS,
    MAX_EXAMPLES,
    NAMESPACE,
    Difference,
    VerifyBuckets,
)
from spoor.store.online import open_online

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class VerifyResult:
    """`kinds` counts differences by kind (every kind is listed); a user may have several."""

    users: int  # users in the lake or the store
    differences: int  # found, before any repair
    kinds: dict[str, int]
    examples: list[Difference]
    releases: tuple[str, ...]
    repaired: int = 0  # differences that the repair removed
    remaining: int = 0  # differences after the repair; without a repair, all
    lag: dict[int, int] | None = None  # records per partition that are not archived yet; None = no answer from Kafka
    seconds: float = 0.0
    remaining_kinds: dict[str, int] = field(default_factory=dict)
    not_applied: tuple[str, ...] = ()  # live releases that Feast does not know: not compared
    unfit_ids: int = 0  # users of the lake whose ids are no int64: not compared
    rows: dict[str, int] = field(default_factory=dict)  # embeddings found, by release
    stale_rows: dict[str, int] = field(default_factory=dict)  # stale or missing embeddings after the repair, by release
    outdated: int = 0  # equal histories with names of hash version 1, after the repair; not counted as differences
    lake_events: int = 0
    repair: bool = False  # whether a repair was requested

    def text(self) -> str:
        """The text output. If the lake lacks events, it names `spoor archive`, which alone can remove the differences
        that these events cause."""
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in self.kinds.items() if count)
        text = f"{self.users:,} users, {self.differences:,} differences" + (f": {kinds}" if kinds else "")
        if self.repair:
            text += f"; {self.repaired:,} repaired, {self.remaining:,} left"
        if self.outdated:
            text += f"; {self.outdated:,} equal histories are of an earlier version's format: --repair rewrites them"
        if self.unfit_ids:
            text += f"; {self.unfit_ids:,} users of the lake have ids that are no int64, and no rows"
        waiting = sum((self.lag or {}).values())
        lake = f"the lake holds {self.lake_events:,} events" if self.lake_events else "the lake is empty"
        if any(self.remaining_kinds.get(kind) for kind in LAKE_LACKS) and (waiting or not self.lake_events):
            kafka = f", and Kafka has {waiting:,} records that it lacks" if waiting else ""
            return f"{text}; {lake}{kafka}: run `spoor archive` first, then verify again"
        return f"{text}; {waiting:,} records in Kafka are not in the lake yet" if waiting else text


def run_verify(settings: BatchSettings, *, repair: bool = False, runner: Runner = LOCAL) -> VerifyResult:
    """Compares every user, for all live releases. `repair` also writes users that differ, and compares them again.

    Raises UsageError (no release, Feast not applied), DataError (damaged lake or release), InfrastructureError.
    """
    started = time.monotonic()
    metrics = JobMetrics(settings.state_folder, "verify")
    found = choose_releases(settings, None)
    releases = found.chosen
    lake = open_lake(settings.lake)
    jobs = settings.state_folder / "jobs"
    with (
        # A repair publishes through the backfills' journal.
        exclusive(jobs / ("backfill.lock" if repair else "verify.lock"), job="spoor verify"),
        listing_folder(settings.state_folder, "verify-repair" if repair else "verify") as folder,
    ):
        online = open_online(settings.features)
        online.check(releases)
        if repair:
            publish_left(settings, online, releases)
        listing = list_users(online.user_ids(), folder / "online", buckets=lake.buckets)
        groups = bucket_groups(lake)
        groups += [(bucket,) for bucket in listing if not any(bucket in group for group in groups)]
        reports = Manifest(folder / "manifest")
        with progress("verify", total=len(groups), finished=reports.keys, metrics=metrics):
            run_items(
                groups,
                VerifyBuckets(settings, releases, folder, repair=repair),
                of="user buckets",
                doing="Compare buckets with the store",
                runner=runner,
                failures=Failures(folder),
                namespace=NAMESPACE,
            )
        if repair:
            publish_left(settings, online, releases)  # the runner may have lost a try
        lag = unarchived(settings, lake)
        result = replace(
            _result(reports, releases, lag, time.monotonic() - started),
            not_applied=found.not_applied,
            lake_events=sum(record["rows"] for record in lake.manifest.records().values()),
            repair=repair,
        )
        metrics.ended(*figures(result))
    return result


def figures(result: VerifyResult) -> list[Metric]:
    """The result as Prometheus metrics."""
    lag = {str(partition): records for partition, records in (result.lag or {}).items()}
    return [
        gauge("spoor_verify_users", "users that the last verify compared", result.users),
        gauges("spoor_verify_differences", "differences that the last verify left", "kind", result.remaining_kinds),
        gauges("spoor_verify_rows", "embeddings that the last verify found", "release", result.rows),
        gauges(
            "spoor_verify_stale_rows", "embeddings behind or missing that verify left", "release", result.stale_rows
        ),
        gauge("spoor_verify_repaired", "differences that the last verify mended", result.repaired),
        gauges("spoor_verify_unarchived_records", "records that Kafka has and the lake has not", "partition", lag),
    ]


def unarchived(settings: BatchSettings, lake: Lake) -> dict[int, int] | None:
    """Records per partition that are in Kafka and not in the lake; None, after a warning, if Kafka does not answer."""
    try:
        with RangeReader(settings.kafka) as reader:
            watermarks = reader.watermarks(settings.kafka.topic)
    except SpoorError as error:
        _LOG.warning("cannot tell how much is not archived yet: %s", error.message)
        return None
    return {
        partition: sum(end - start for start, end in gaps(lake.covered(partition), begin=low, high=high))
        for partition, (low, high) in watermarks.items()
    }


def _result(reports: Manifest, releases: tuple[str, ...], lag: dict[int, int] | None, seconds: float) -> VerifyResult:
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("found", "remaining", "rows", "stale")}
    totals: Counter[str] = Counter()
    examples: list[Difference] = []
    for report in reports.records().values():
        totals.update({name: report[name] for name in ("users", "unfit_ids", "outdated")})
        for name, counter in counts.items():
            counter.update(report[name])
        examples += [Difference(**example) for example in report["examples"]]
    found, remaining = counts["found"], counts["remaining"]
    return VerifyResult(
        users=totals["users"],
        differences=found.total(),
        kinds={kind: found[kind] for kind in KINDS},
        examples=examples[:MAX_EXAMPLES],
        releases=releases,
        repaired=max(found.total() - remaining.total(), 0),
        remaining=remaining.total(),
        lag=lag,
        seconds=seconds,
        remaining_kinds={kind: remaining[kind] for kind in KINDS},
        rows={release: counts["rows"][release] for release in releases},
        stale_rows={release: counts["stale"][release] for release in releases},
        outdated=totals["outdated"],
        unfit_ids=totals["unfit_ids"],
    )
