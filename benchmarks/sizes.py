"""How many bytes does a user take in Redis, and an event in Kafka and in the lake?

    python -m benchmarks.sizes --redis HOST:PORT [--events 200000] [--users 1000] --json [--keep]

Redis, which must be empty: what MEMORY USAGE says of the hashes of 1,000 users with a history of 256 events and an
embedding of 64 floats, written as any writer writes them; the mean. Kafka and lake: simulated events, produced to a
genuine embedded broker, archived, and backfilled with the untrained model `base`: the sizes of log segments and of
Parquet files, by event and by embedding row. `ratio` is payload over bytes in Redis: 16 bytes an event and 4 a float
against all that keys, field names, protobuf and Redis itself add.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import redis as redis_client

from benchmarks.feast_write import DIMENSION, RELEASE, writes_of
from benchmarks.shared.repo import applied_repo
from benchmarks.shared.rows import circumstances, finish
from spoor.activity.simulator import SimulatorSettings
from spoor.batch.kafka.archive import run_archive
from spoor.batch.users.backfill import run_backfill
from spoor.broker.create_topics import ensure_topics
from spoor.config import load_settings
from spoor.feature_repo.names import user_embedding_view
from spoor.operations.simulate import run_simulate
from spoor.services import local as services
from spoor.store.online import open_online

RESULTS = Path(__file__).parent / "results" / "sizes.jsonl"
GOAL = 0.7
FULL_EVENTS, FULL_USERS = 256, 1_000
_DAY_MS = 86_400_000


def measure(*, redis: str, events: int, users: int) -> dict[str, Any]:
    host, _, port = redis.partition(":")
    client = redis_client.Redis(host=host, port=int(port))
    if client.dbsize():
        sys.exit(f"the Redis at {redis} is not empty")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        applied_repo(folder, release=RELEASE, items=2_000, redis=redis)
        (folder / "spoor.toml").write_text('state_folder = "state"\n[features]\noffline_folder = "offline"\n')
        settings = load_settings(file=folder / "spoor.toml", environ={})
        in_redis = _bytes_of_full_users(settings.features, client)
        services.up(settings)
        try:
            ensure_topics(settings.kafka, releases=[RELEASE])
            now_ms = time.time_ns() // 1_000_000
            plan = SimulatorSettings(events=events, users=users, from_ms=now_ms - 30 * _DAY_MS, to_ms=now_ms)
            run_simulate(settings, synthetic=plan)
            archived = run_archive(settings)
            backfilled = run_backfill(settings)
        finally:
            services.down(settings)
        topic = settings.kafka.embedding_topic(RELEASE)
        data = settings.state_folder / "kafka" / "data"
        in_kafka = _size(data, f"{settings.kafka.topic}-*/*.log")
        published, rows = _size(data, f"{topic}-*/*.log"), backfilled.published
        in_lake = _size(settings.lake.folder, "**/*.parquet")
        offline = _size(settings.features.offline_folder / user_embedding_view(RELEASE), "**/*.parquet")
    payload = FULL_EVENTS * 16 + DIMENSION * 4
    return {
        "benchmark": "sizes",
        "ratio": round(payload / in_redis, 3),
        "goal": GOAL,
        "redis_bytes_per_user": round(in_redis),
        "redis_payload_per_user": payload,
        "history_events": FULL_EVENTS,
        "dimension": DIMENSION,
        "kafka_bytes_per_event": round(in_kafka / events, 1),
        "lake_bytes_per_event": round(in_lake / archived.events, 1),
        "topic_bytes_per_row": round(published / rows, 1),
        "offline_bytes_per_row": round(offline / backfilled.offline_rows, 1),
        "events": archived.events,
        "rows": rows,
        "backfill_users_per_second": round(backfilled.users_per_second, 1),
    } | circumstances("feast")


def _bytes_of_full_users(features: Any, client: Any) -> float:
    """Mean of MEMORY USAGE; the users are removed again."""
    if not open_online(features).write(writes_of(FULL_USERS, revision=1, events=FULL_EVENTS)).all():
        sys.exit("another process writes to this store")
    keys = list(client.scan_iter(count=1_000))
    if len(keys) != FULL_USERS:
        sys.exit(f"{len(keys)} keys for {FULL_USERS} users")
    total = sum(client.memory_usage(key, samples=0) for key in keys)
    client.delete(*keys)
    return total / FULL_USERS


def _size(folder: Path, pattern: str) -> int:
    found = sum(path.stat().st_size for path in folder.glob(pattern))
    if not found:
        sys.exit(f"nothing under {folder} is named {pattern}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redis", required=True, help="an empty Redis, HOST:PORT")
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--users", type=int, default=1_000)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--keep", action="store_true", help=f"append the object to {RESULTS.name}")
    options = parser.parse_args()
    found = measure(redis=options.redis, events=options.events, users=options.users)
    finish(found, options, RESULTS, module="benchmarks.sizes")


if __name__ == "__main__":
    main()
