"""The judge of `make faults`: what must be there, computed from what was produced, against what is there.

It shares no code with the product (tests/faults/test_judge.py holds that): it reads Kafka with kafka-python, the online
store as any reader does, through Feast, the lake and the offline log with pyarrow, all by docs/data-formats.md, and
computes histories with sets and sorting. `spoor verify` runs beside it, as a second judge.

  histories     of every user the newest L of the set of accepted events after what was forgotten; nobody else's
  embeddings    one row per user and live release, of the history's revision, time and length; on the topic the last
                record per user is that row, and equal revisions have equal vectors
  dead letters  exactly the bad records, byte for byte, under their origins
  lake          exactly the accepted records, each once under its offset, without what was forgotten
  forgotten     no row of any kind made of the past
  retired       no online row, topic, view or service; the rows of its topic in the offline log

Not judged: whether a vector is what the model computes from the history (that is what `spoor verify` recomputes).
"""

from __future__ import annotations

import json
import math
import sqlite3
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import redis
from feast import FeatureStore
from feast.infra.key_encoding_utils import deserialize_entity_key
from kafka import KafkaConsumer, TopicPartition

from tests.faults import formats

_HISTORY_FIELDS = ("history", "revision", "events", "event_time_ms")
_EMBEDDING_FIELDS = ("embedding", "revision", "events_used", "event_time_ms", "created_ms", "model_version")
_USERS_AT_ONCE = 500
_READ_SECONDS = 120.0
_NEVER = -(1 << 63)
Place = tuple[int, int]  # partition, offset


class Sent(NamedTuple):
    """An accepted event, and where Kafka acknowledged it."""

    user: str
    item: str
    action: str
    surface: str
    timestamp: int
    partition: int
    offset: int


@dataclass(frozen=True)
class Case:
    """All that the judge is told. `lost`: records that retention took and that were counted as lost; they may be there
    or not. `forgotten`: user → through when, the latest."""

    address: str
    topic: str
    dead_letter_topic: str
    embedding_topic_prefix: str
    feature_repo: Path
    offline_folder: Path
    lake_folder: Path | None  # None: it is not judged
    releases: tuple[str, ...]
    max_events: int
    sent: Sequence[Sent]
    bad: Mapping[str, tuple[bytes | None, bytes | None]]
    forgotten: Mapping[str, int] = field(default_factory=dict)
    retired: tuple[str, ...] = ()
    lost: Collection[Place] = ()
    one_vector_per_revision: bool = True  # not where a store lost writes: their revisions are given again


@dataclass
class Verdict:
    users: int = 0
    events: int = 0  # of the histories that were compared
    rows: int = 0  # embeddings
    letters: int = 0
    lake_rows: int = 0
    differences: list[str] = field(default_factory=list)

    def expect(self, what: str, found: object, expected: object) -> bool:
        if found != expected:
            self.differences.append(f"{what}: found {_short(found)}, expected {_short(expected)}")
        return found == expected


def judge(case: Case) -> Verdict:
    verdict = Verdict()
    store = FeatureStore(repo_path=str(case.feature_repo))
    records = {release: _last_records(case, release, verdict) for release in case.releases}
    _judge_users(case, store, records, verdict)
    _judge_letters(case, verdict)
    _judge_lake(case, verdict)
    _judge_forgotten(case, verdict)
    for release in case.retired:
        _judge_retired(case, store, release, verdict)
    return verdict


# -- histories and embeddings


def expected_history(case: Case, sent: Iterable[Sent], version: int) -> list[formats.Key]:
    """One user's newest L events."""
    return accepted(case, sent, version)[-case.max_events :]


def accepted(case: Case, sent: Iterable[Sent], version: int) -> list[formats.Key]:
    """The set of events, in their order, without what was forgotten."""
    return sorted(
        {
            (
                e.timestamp,
                formats.hash_item(e.item),
                formats.hash_name(e.action, version),
                formats.hash_name(e.surface, version),
            )
            for e in sent
            if e.timestamp > case.forgotten.get(e.user, _NEVER)
        }
    )


def _judge_users(
    case: Case, store: FeatureStore, records: Mapping[str, Mapping[str, dict[str, Any] | None]], verdict: Verdict
) -> None:
    by_user: defaultdict[str, list[Sent]] = defaultdict(list)
    for event in case.sent:
        by_user[event.user].append(event)
    users = sorted({*by_user, *case.forgotten, *users_of(store), *(user for last in records.values() for user in last)})
    for at in range(0, len(users), _USERS_AT_ONCE):
        part = users[at : at + _USERS_AT_ONCE]
        histories = _online(store, "user_history", _HISTORY_FIELDS, part)
        rows = {name: _online(store, _view(name), _EMBEDDING_FIELDS, part) for name in case.releases}
        for number, user in enumerate(part):
            stored = histories[number]
            left = _judge_history(case, user, by_user[user], stored, verdict)
            for release in case.releases:
                row, last = rows[release][number], records[release].get(user)
                _judge_embedding(f"{release} of {user}", release, stored, left, row, last, verdict)


def _judge_history(
    case: Case, user: str, sent: Sequence[Sent], stored: Mapping[str, Any], verdict: Verdict
) -> list[formats.Key]:
    """Returns what the store holds."""
    packed = stored["history"]
    if packed is None:
        expected = expected_history(case, [e for e in sent if (e.partition, e.offset) not in case.lost], 1)
        verdict.expect(f"history of {user}", [], expected)
        return []
    try:
        found = formats.unpack_history(packed)
    except ValueError as error:
        verdict.differences.append(f"history of {user}: {error}")
        return []
    judge_events(case, user, sent, found, verdict)
    verdict.expect(f"marker of {user}", found.forgotten_through, case.forgotten.get(user))
    verdict.expect(f"number of events of {user}", stored["events"], len(found.events))
    if found.events:
        verdict.users += 1
        verdict.events += len(found.events)
        verdict.expect(f"time of {user}", stored["event_time_ms"], found.events[-1][0])
    return found.events


def judge_events(case: Case, user: str, sent: Sequence[Sent], found: formats.History, verdict: Verdict) -> None:
    """Where nothing was lost: exactly the newest L. Else what is there was sent; and what was sent, is new enough and
    is not there, was counted as lost."""
    if not case.lost:
        verdict.expect(f"history of {user}", found.events, expected_history(case, sent, found.version))
        return
    sure = expected_history(case, [e for e in sent if (e.partition, e.offset) not in case.lost], found.version)
    whole, there = set(accepted(case, sent, found.version)), set(found.events)
    verdict.expect(f"order of {user}", found.events, sorted(there))
    verdict.expect(f"unknown events of {user}", there - whole, set())
    full = len(found.events) >= case.max_events
    missing = {key for key in sure if key not in there and not (full and key < found.events[0])}
    verdict.expect(f"events of {user} that nobody counted as lost", missing, set())


def _judge_embedding(
    what: str,
    release: str,
    stored: Mapping[str, Any],
    events: Sequence[formats.Key],
    row: Mapping[str, Any],
    last: Mapping[str, Any] | None,
    verdict: Verdict,
) -> None:
    if not events:
        verdict.expect(f"embedding {what}, who has no event", row["embedding"], None)
        verdict.expect(f"last record {what}, who has no event", last, None)
        return
    verdict.rows += 1
    if row["embedding"] is None:
        verdict.differences.append(f"embedding {what}: there is none")
        return
    verdict.expect(f"revision of embedding {what}", row["revision"], stored["revision"])
    verdict.expect(f"time of embedding {what}", row["event_time_ms"], events[-1][0])
    verdict.expect(f"version of embedding {what}", row["model_version"], release)
    norm = math.sqrt(sum(x * x for x in row["embedding"]))
    usable = 0 < row["events_used"] <= len(events)
    verdict.expect(f"norm of embedding {what}", round(norm, 3), 1.0 if usable else 0.0)
    published = None if last is None else {name: last[name] for name in _EMBEDDING_FIELDS}
    verdict.expect(f"last record {what}", published, dict(row))


def _last_records(case: Case, release: str, verdict: Verdict) -> dict[str, dict[str, Any] | None]:
    """The last record per user on the release's topic, None for one without value; on the way: one revision has one
    vector."""
    last: dict[str, dict[str, Any] | None] = {}
    vectors: dict[tuple[str, int], list[float]] = {}
    for record in read_topic(case.address, case.embedding_topic_prefix + release):
        user = record.key.decode()
        if record.value is None:
            last[user] = None
            continue
        row = last[user] = formats.read_embedding(record.value)
        verdict.expect(f"user id on the topic of {release}", row["user_id"], user)
        first = vectors.setdefault((user, row["revision"]), row["embedding"])
        if case.one_vector_per_revision:
            verdict.expect(f"vectors of revision {row['revision']} of {user} in {release}", row["embedding"], first)
    return last


# -- the store


def _online(store: FeatureStore, view: str, fields: Sequence[str], users: Sequence[str]) -> list[dict[str, Any]]:
    features = [f"{view}:{name}" for name in fields]
    found = store.get_online_features(features=features, entity_rows=[{"user_id": user} for user in users]).to_dict()
    return [dict(zip(fields, values, strict=True)) for values in zip(*(found[name] for name in fields), strict=True)]


def users_of(store: FeatureStore) -> set[str]:
    """Everybody of whom the store has any row."""
    keys = _sqlite_keys(store) if store.config.online_store.type == "sqlite" else _redis_keys(store)
    users = set()
    for key in keys:
        entity = deserialize_entity_key(key, entity_key_serialization_version=3)
        if list(entity.join_keys) == ["user_id"]:
            users.add(entity.entity_values[0].string_val)
    return users


def _sqlite_keys(store: FeatureStore) -> set[bytes]:
    with closing(sqlite3.connect(f"file:{store.config.online_store.path}?mode=ro", uri=True)) as database:
        tables = [name for (name,) in database.execute("select name from sqlite_master where type = 'table'")]
        ours = [name for name in tables if name.startswith(f"{store.project}_user_")]
        return {key for table in ours for (key,) in database.execute(f'select distinct entity_key from "{table}"')}


def _redis_keys(store: FeatureStore) -> set[bytes]:
    project = store.project.encode()
    return {key[: -len(project)] for key in _redis(store).scan_iter(b"*" + project, count=1000)}


def _redis(store: FeatureStore) -> Any:
    settings = store.config.online_store
    hosts = [address.split(":") for address in settings.connection_string.split(",")]
    if settings.redis_type == "redis_cluster":
        nodes = [redis.cluster.ClusterNode(host, int(port)) for host, port in hosts]
        return redis.cluster.RedisCluster(startup_nodes=nodes)
    return redis.Redis(hosts[0][0], int(hosts[0][1]))


def _view(release: str) -> str:
    return "user_embedding_" + release.replace("-", "_")


# -- Kafka


def read_topic(address: str, topic: str) -> Iterator[Any]:
    """Every record up to the present end, partition by partition in the order of offsets."""
    consumer = KafkaConsumer(
        bootstrap_servers=address, auto_offset_reset="earliest", enable_auto_commit=False, group_id=None
    )
    with closing(consumer):
        partitions = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic) or ())]
        ends = consumer.end_offsets(partitions)
        starts = consumer.beginning_offsets(partitions)
        for partition in partitions:
            if starts[partition] >= ends[partition]:
                continue
            consumer.assign([partition])
            consumer.seek(partition, starts[partition])
            deadline = time.monotonic() + _READ_SECONDS
            while consumer.position(partition) < ends[partition]:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{topic} partition {partition} could not be read to {ends[partition]}")
                for records in consumer.poll(timeout_ms=200).values():
                    yield from (record for record in records if record.offset < ends[partition])


def _judge_letters(case: Case, verdict: Verdict) -> None:
    found: dict[str, formats.DeadLetter] = {}
    for record in read_topic(case.address, case.dead_letter_topic):
        letter = formats.read_dead_letter(record.value)
        verdict.expect("key of a dead letter", record.key.decode(), letter.origin)
        found[letter.origin] = letter
    verdict.letters = len(found)
    expected = {origin: formats.dead_letter(origin, *record) for origin, record in case.bad.items()}
    for origin in sorted(found.keys() | expected.keys()):
        here, sent = found.get(origin), expected.get(origin)
        if here is None and _place(origin) in case.lost:
            continue
        if here is not None and here.reference and sent is not None:  # the bytes lie at the origin
            sent = sent._replace(key=None, value=None, reference=True)
        verdict.expect(f"dead letter {origin}", here, sent)


def _place(origin: str) -> Place:
    _, partition, offset = origin.rsplit("/", 2)
    return int(partition), int(offset)


# -- lake and offline log


def lake_rows(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(path below the lake, row) of every file that the manifest names."""
    for entry in sorted((folder / "_manifest").glob("*.json")):
        for file in json.loads(entry.read_bytes()).get("files", []):
            for row in pq.read_table(folder / file["name"], partitioning=None).to_pylist():
                yield file["name"], row


def _judge_lake(case: Case, verdict: Verdict) -> None:
    if case.lake_folder is None:
        return
    expected = {(e.partition, e.offset): e[:5] for e in case.sent if e.timestamp > case.forgotten.get(e.user, _NEVER)}
    found: dict[Place, tuple[Any, ...]] = {}
    buckets_file = case.lake_folder / "_buckets"
    buckets = int(buckets_file.read_text()) if buckets_file.exists() else 1
    for name, row in lake_rows(case.lake_folder):
        place = row["partition"], row["offset"]
        if place in found:
            verdict.differences.append(f"lake: partition {place[0]} offset {place[1]} is there twice")
        found[place] = tuple(row[x] for x in ("user_id", "item_id", "action", "surface", "timestamp"))
        day = datetime.fromtimestamp(row["append_time"] / 1000, UTC).date().isoformat()
        folder = f"day={day}/bucket={formats.bucket_of(row['user_id'], buckets):02d}"
        verdict.expect(f"folder of partition {place[0]} offset {place[1]} in the lake", name.rpartition("/")[0], folder)
    verdict.lake_rows = len(found)
    for place in sorted(found.keys() | expected.keys()):
        if place in case.lost and place not in found:
            continue
        verdict.expect(f"lake: partition {place[0]} offset {place[1]}", found.get(place), expected.get(place))


def offline_rows(folder: Path, view: str) -> Iterator[dict[str, Any]]:
    for file in sorted((folder / view).glob("*/[!.]*.parquet")):
        yield from pq.read_table(file, partitioning=None).to_pylist()


def _judge_forgotten(case: Case, verdict: Verdict) -> None:
    """No row of the offline log that is made of the past: its newest event would lie there."""
    if not case.forgotten:
        return
    for view in sorted(path.name for path in case.offline_folder.iterdir() if path.name.startswith("user_")):
        for row in offline_rows(case.offline_folder, view):
            through = case.forgotten.get(row["user_id"], _NEVER)
            if row["event_time_ms"] <= through:
                verdict.differences.append(f"offline log {view}: a row of {row['user_id']} made of the past")


def _judge_retired(case: Case, store: FeatureStore, release: str, verdict: Verdict) -> None:
    view = _view(release)
    registered = {o.name for o in [*store.list_feature_views(), *store.list_feature_services()]}
    suffix = release.replace("-", "_")
    gone = {view, f"item_embedding_{suffix}", f"ranker_{suffix}"}
    verdict.expect(f"what Feast knows of {release}", registered & gone, set())
    with closing(KafkaConsumer(bootstrap_servers=case.address, group_id=None)) as consumer:
        topics = consumer.topics()
    verdict.expect(f"topic of {release}", case.embedding_topic_prefix + release in topics, False)
    verdict.expect(f"online rows of {release}", _rows_of_view(store, view), 0)


def _rows_of_view(store: FeatureStore, view: str) -> int:
    if store.config.online_store.type == "sqlite":
        with closing(sqlite3.connect(f"file:{store.config.online_store.path}?mode=ro", uri=True)) as database:
            table = f"{store.project}_{view}"
            if not database.execute("select 1 from sqlite_master where name = ?", [table]).fetchall():
                return 0
            return database.execute(f'select count(*) from "{table}"').fetchone()[0]
    client, project = _redis(store), store.project.encode()
    return sum(client.hexists(key + project, f"_ts:{view}") for key in _redis_keys(store))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:150]}… ({len(text)} characters)"
