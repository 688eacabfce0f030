"""The second half of `spoor archive`: lands rows published on `user-embeddings.<release>` in the offline log, so that
point-in-time reads see the rows that rankers saw online.

Work items are bounded offset ranges, as for the events. Each is one item of the offline log's manifest; another entry
holds the topic's id. The topics are compacted, a record at the earliest `min.compaction.lag.ms` after its append; this
must be longer than the time between two archives. Compacted records are counted and logged. Tombstones are skipped, and
so are rows of events or computations from before their user's deletion. Records that are no embedding row of their
key's user and their topic's release are counted and logged.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import apache_beam as beam
import numpy as np

from spoor.activity.forgotten import ForgottenUsers
from spoor.activity.lake import Lake
from spoor.activity.settings import LakeSettings
from spoor.base.errors import DataError, InfrastructureError, UsageError
from spoor.base.files import Manifest
from spoor.batch.jobs import LOCAL, Failures, Runner, add_counts, run_items
from spoor.batch.kafka.kafka_source import RangeReader, check_same_topic, gaps, plan_ranges
from spoor.batch.settings import ArchiveSettings
from spoor.broker.admin import topic_configs, topic_ids
from spoor.broker.reader import KafkaRange, Span
from spoor.broker.settings import KafkaSettings
from spoor.encoder.release.info import read_info
from spoor.feature_repo.names import user_embedding_view
from spoor.feature_repo.releases import live_releases
from spoor.feature_repo.settings import FeatureSettings

if TYPE_CHECKING:
    from spoor.store.rows import EmbeddingRow

NAMESPACE = "spoor.archive_embeddings"
EMBEDDING_ROWS = "embedding_rows"  # rows landed in the offline log
BAD_ROWS = "bad_rows"  # records that are no embedding row of their key's user and their topic's release
COMPACTED = "compacted"  # offsets whose record was compacted before it was read
_PREFIX = "published-"
_TOPIC = _PREFIX + "topic"  # manifest entry that holds the topic's id
_ITEM = re.compile(_PREFIX + r"p(\d+)-(\d+)-(\d+)")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class TopicRange:
    """A work item: a range of offsets of a release's topic."""

    release: str
    range: KafkaRange
    topic_id: str | None


def plan_embeddings(
    settings: ArchiveSettings, reader: RangeReader, releases: Sequence[str] | None = None
) -> list[TopicRange]:
    """The ranges of the topics of `releases` (default: the live ones) that are not in the offline log yet."""
    items: list[TopicRange] = []
    if releases is None:
        releases = [release.name for release in live_releases(settings.features.releases_folder)]
    ids = topic_ids(settings.kafka, [settings.kafka.embedding_topic(release) for release in releases])
    for release in releases:
        topic = settings.kafka.embedding_topic(release)
        try:
            watermarks = reader.watermarks(topic)
        except UsageError:
            continue  # nothing was ever published
        hint = f"remove {_manifest(settings.features, release).folder}/{_PREFIX}*.json, then archive it anew"
        check_same_topic(topic, ids.get(topic), _manifest(settings.features, release), _TOPIC, hint=hint)
        landed = landed_spans(settings.features, release)
        for partition, spans in landed.items():
            _, high = watermarks.get(partition, (0, 0))
            if spans[-1][1] > high:
                raise DataError(
                    f"the offline log holds partition {partition} of topic `{topic}` up to offset {spans[-1][1]}, but "
                    f"the partition ends at {high}",
                    hint=f"was the topic deleted and made again? then {hint}",
                )
        missing = {
            partition: gaps(landed.get(partition, []), begin=low, high=high)
            for partition, (low, high) in watermarks.items()
        }
        ranges = plan_ranges(topic, watermarks, missing, range_records=settings.lake.range_records)
        items += [TopicRange(release, each, ids.get(topic)) for each in ranges]
    return items


def oldest_unlanded_ms(settings: ArchiveSettings) -> int | None:
    """Time of the oldest record on the topics of live releases that is not in the offline log; None if there is none.
    Raises InfrastructureError."""
    times: dict[tuple[str, int], int] = {}
    with RangeReader(settings.kafka) as reader:
        for item in plan_embeddings(settings, reader):
            key = (item.release, item.range.partition)
            if key not in times and (records := next(reader.read(item.range), None)):
                times[key] = int(records[0].timestamp)
    return min(times.values(), default=None)


def landed_spans(features: FeatureSettings, release: str) -> dict[int, list[Span]]:
    """Ascending offset spans of the release's topic in the offline log, by partition."""
    found: dict[int, list[Span]] = {}
    for key in _manifest(features, release).records():
        if match := _ITEM.fullmatch(key):
            partition, start, end = map(int, match.groups())
            found.setdefault(partition, []).append((start, end))
    return {partition: sorted(spans) for partition, spans in found.items()}


def _manifest(features: FeatureSettings, release: str) -> Manifest:
    """OfflineLog.manifest, without importing Feast."""
    return Manifest(features.offline_folder / "_manifest" / features.named(user_embedding_view(release)))


def check_compaction_lag(kafka: KafkaSettings) -> None:
    """Warns of every embedding topic whose compaction lag is shorter than the configured one."""
    try:
        configs = topic_configs(kafka, lambda topic: topic.startswith(kafka.embedding_topic_prefix))
    except InfrastructureError as error:  # for example a Kafka user without permission to read it
        _LOG.warning("the compaction lag of the embedding topics is not checked: %s", error.message)
        return
    wanted_ms = int(kafka.embedding_topic_config["min.compaction.lag.ms"])
    for topic, config in sorted(configs.items()):
        if int(config.get("min.compaction.lag.ms", wanted_ms)) < wanted_ms:
            _LOG.warning(
                "topic `%s` may be compacted after %s ms, expected %d (kafka.embedding_compaction_lag_hours): rows "
                "that go before they are archived are missing in point-in-time reads. Raise it: %s",
                topic, config["min.compaction.lag.ms"], wanted_ms,
                kafka.topic_change(topic, f"min.compaction.lag.ms={wanted_ms}"),
            )  # fmt: skip


def land_embeddings(settings: ArchiveSettings, items: list[TopicRange], *, runner: Runner) -> dict[str, int]:
    """Runs the pipeline; returns its counters."""
    if not items:
        return {}
    for release, topic_id in {item.release: item.topic_id for item in items}.items():
        if topic_id is not None:
            _manifest(settings.features, release).add(_TOPIC, {"topic_id": topic_id, "files": [], "rows": 0})
    failures = Failures(settings.state_folder / "jobs" / "archive")
    return run_items(
        items,
        LandEmbeddings(settings.kafka, settings.features, settings.lake, failures),
        of="offset ranges of embeddings",
        doing="Land range in the offline log",
        runner=runner,
        failures=failures,
        namespace=NAMESPACE,
    )


def land_release(settings: ArchiveSettings, release: str, *, runner: Runner = LOCAL) -> int:
    """Lands the remaining rows of one release's topic; the caller holds the archive's lock. Returns the number of rows.
    Raises as `run_archive`."""
    with RangeReader(settings.kafka) as reader:
        items = plan_embeddings(settings, reader, [release])
    return land_embeddings(settings, items, runner=runner).get(EMBEDDING_ROWS, 0)


@dataclass(eq=False)
class LandEmbeddings(beam.DoFn):
    """Reads one TopicRange, writes its rows as one item of the offline log; yields the range's key."""

    kafka: KafkaSettings
    features: FeatureSettings
    lake: LakeSettings
    failures: Failures

    def setup(self) -> None:
        # These import Feast, which takes seconds; an archive without rows skips it.
        from spoor.store.guarded.protobytes import EntityKeys
        from spoor.store.offline import open_offline

        with self.failures.recorded():
            self._reader = RangeReader(self.kafka)
            self._offline = open_offline(self.features)
            self._keys = EntityKeys(self.features.user_join_key, self.features.user_id_type)

    def teardown(self) -> None:
        if hasattr(self, "_reader"):
            self._reader.close()

    def process(self, element: TopicRange) -> Iterator[str]:  # pyright: ignore[reportIncompatibleMethodOverride]
        item = element.range
        rows, counts = [], Counter({EMBEDDING_ROWS: 0, BAD_ROWS: 0, COMPACTED: item.end - item.start})
        with self.failures.recorded():
            dimension = read_info(self.features.releases_folder / element.release).dimension
            for records in self._reader.read(item):
                counts[COMPACTED] -= len(records)
                for record in records:
                    if record.value is None:
                        continue
                    try:
                        rows.append(self._row(record, element.release, dimension))
                    except DataError as error:
                        counts[BAD_ROWS] += 1
                        _LOG.warning(
                            "%s, partition %d, offset %d: %s", item.topic, item.partition, record.offset, error
                        )
            rows = _without_past(rows, Lake(self.lake.folder, buckets=self.lake.buckets).forgotten)
            counts[EMBEDDING_ROWS] = len(rows)
            if counts[COMPACTED]:
                _LOG.warning(
                    "%s, partition %d, offsets %d to %d: %d records were compacted before they were archived",
                    item.topic, item.partition, item.start, item.end - 1, counts[COMPACTED],
                )  # fmt: skip
            self._offline.write_embeddings(element.release, f"{_PREFIX}{item.key}", rows)
        add_counts(NAMESPACE, counts)
        yield item.key

    def _row(self, record: Any, release: str, dimension: int) -> EmbeddingRow:
        """Raises DataError for a record that Spoor cannot have published: other clients may produce to the topic."""
        from spoor.store.rows import bad_vectors, embedding_row_from_record

        row = embedding_row_from_record(record.value)
        self._keys.to_bytes(row.user_id)  # raises for an id of another type
        found = (row.user_id.encode(), row.model_version, row.embedding.shape)
        expected = (record.key, release, (dimension,))
        if found != expected:
            raise DataError(f"user, release and shape of the embedding are {found}, expected {expected}")
        if bad_vectors(row.embedding[None], np.array([row.events_used]))[0]:
            raise DataError(f"the embedding of user {row.user_id!r} is not finite or not of norm 1")
        return row


def _without_past(rows: list[EmbeddingRow], forgotten: ForgottenUsers) -> list[EmbeddingRow]:
    """Drops rows that may contain deleted events: newest event at or before the cut-off, or computed before the
    deletion."""
    users = [row.user_id for row in rows]
    times = zip(rows, forgotten.through(users), forgotten.at(users), strict=True)
    return [row for row, through, at in times if row.event_time_ms > through and row.computed_at_ms > at]
