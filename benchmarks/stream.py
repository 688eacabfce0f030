"""How many events a second does one worker bring from Kafka to confirmed rows in Redis, and how soon can they be read?

    python -m benchmarks.stream --redis HOST:PORT [--events 200000] [--rounds 2] [--seconds 60] --json [--keep]

12 partitions, users drawn from a Zipf law, the model `base` (2 layers, d = 64) with random weights, histories of 64
events, Kafka on this machine. Each part runs alone, in a process of its own:

 worker   `run_worker` as `spoor stream` runs it: decoded, merged, encoded, written with guard, published, committed.
          Every user has a history of 64 events in the store. Events over the time from its first batch to its last.
          `peak_mb`: the most that its two processes had in memory.
 decode   a Faust agent that takes the same batches, decodes them and commits, and does nothing else.
 encode   the encoder alone on the very histories that the worker encoded, in the same parts of a batch (which is a
          twentieth faster than whole batches).

`ratio` is the worker's best round over the best round of the slower of the other two. Then events are produced at a
steady rate to a running worker, and for some of them plain Feast is asked until it answers with a row as new as the
event: `readable_ms` counts from the record's append time in Kafka, with the time of the asking.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import faust
import numpy as np
import tomli_w
from feast import FeatureStore
from kafka import KafkaProducer

from benchmarks.shared.repo import NOW_MS, applied_repo
from benchmarks.shared.rows import circumstances, finish, tree_mb
from spoor.activity.events import Event, encode_event
from spoor.activity.hashing import hash_items, hash_names
from spoor.activity.history import EVENT_DTYPE, Histories
from spoor.activity.packing import pack
from spoor.broker.create_topics import ensure_topics
from spoor.broker.reader import GroupReader
from spoor.config import Settings, load_settings
from spoor.encoder.release.inference import load_encoders
from spoor.feature_repo.names import user_embedding_view
from spoor.services.local import down, up
from spoor.store.online import open_online
from spoor.store.rows import UserWrite
from spoor.streaming.kafka.broker import broker_urls
from spoor.streaming.pipeline.encoder_process import RemoteEncoder
from spoor.streaming.records.core import decode_batch
from spoor.streaming.worker import run_worker

RESULTS = Path(__file__).parent / "results" / "stream.jsonl"
GOAL = 0.6
GOAL_MS = {"p50": 500, "p99": 1500}
RELEASE = "stream-1"
PARTITIONS, MAX_EVENTS, ITEMS = 12, 64, 5_000
ZIPF = 1.0  # exponent of the users' shares
ANSWER_SECONDS = 120.0
_ASKED_EVERY = 50  # events between two that Feast is asked for
_ASK_SECONDS = 0.05  # between two questions: a benchmark shares the processors with what it measures
_LOOK_SECONDS = 1.0  # between two looks at a part's memory


def zipf_events(count: int, *, users: int, seed: int) -> list[Event]:
    rng = np.random.default_rng(seed)
    shares = 1 / np.arange(1, users + 1) ** ZIPF
    chosen = rng.choice(users, count, p=shares / shares.sum()).tolist()
    items = rng.integers(0, ITEMS, count).tolist()
    start_ms = time.time_ns() // 1_000_000 - count
    return [
        Event(f"user-{user}", f"item-{item}", "view", "home", start_ms + n)
        for n, (user, item) in enumerate(zip(chosen, items, strict=True))
    ]


def fill_store(settings: Settings, *, users: int) -> None:
    """A history of MAX_EVENTS events for each user, from before those that the benchmark produces."""
    rng = np.random.default_rng(1)
    values = np.zeros((users, MAX_EVENTS), EVENT_DTYPE)
    values["timestamp"] = NOW_MS - np.sort(rng.integers(1, 10**10, values.shape))[:, ::-1]
    values["item"] = hash_items([f"item-{number}" for number in range(ITEMS)])[rng.integers(0, ITEMS, values.shape)]
    values["action"], values["surface"] = hash_names(["view"])[0], hash_names(["home"])[0]
    packed, last = pack(Histories.of(list(values))), values["timestamp"][:, -1].tolist()
    writes = [
        UserWrite(f"user-{user}", 0, 1, packed[user], MAX_EVENTS, last[user], last[user], embeddings=[])
        for user in range(users)
    ]
    if not open_online(settings.features).write(writes).all():
        sys.exit("the Redis is not empty: give an empty one")


def write_settings(folder: Path, *, kafka: Path, group: str, cache_users: int = 100_000) -> Path:
    """Of one round: its own store and group, the common broker and topic."""
    file = folder / "spoor.toml"
    address = load_settings(file=kafka, environ={}).kafka.address
    content = {
        "state_folder": str(folder / "state"),
        "kafka": {"bootstrap_servers": address, "partitions": PARTITIONS},
        "history": {"max_events": MAX_EVENTS},
        "features": {"feature_repo": str(folder / "feature_repo"), "releases_folder": str(folder / "releases")},
        "stream": {"group": group, "cache_users": cache_users},
    }
    file.write_text(tomli_w.dumps(content), encoding="utf-8")
    return file


@contextmanager
def running_broker(folder: Path, events: list[Event]) -> Iterator[Path]:
    """A Kafka with the topics and these events, while the block runs; yields its settings file."""
    file = folder / "broker.toml"
    content = {"state_folder": str(folder / "broker"), "kafka": {"partitions": PARTITIONS}}
    file.write_text(tomli_w.dumps(content), encoding="utf-8")
    settings = load_settings(file=file, environ={})
    up(settings)
    try:
        ensure_topics(settings.kafka, releases=[RELEASE])
        produce(settings, events)
        yield file
    finally:
        down(settings)


def produce(settings: Settings, events: list[Event]) -> None:
    with closing(KafkaProducer(**settings.kafka.client_options(), linger_ms=20, batch_size=256 * 1024)) as producer:
        for event in events:
            producer.send(settings.kafka.topic, key=event.user_id.encode(), value=encode_event(event))
        producer.flush()


# -- each alone, in a process of its own


def work(settings: Settings, folder: Path, count: int | None) -> dict[str, Any]:
    """The worker; with a count it leaves behind what it encoded, for `encode`."""
    encode, encoded = RemoteEncoder.encode, []

    def remembered(self: RemoteEncoder, histories: Histories) -> Any:
        encoded.append((histories.values.copy(), histories.lengths))
        return encode(self, histories)

    if count is not None:
        RemoteEncoder.encode = remembered  # type: ignore[method-assign]
    summary = run_worker(settings, count=count, timeout_seconds=None if count is None else 600.0)
    if count is not None:
        values, lengths = (np.concatenate(parts) for parts in zip(*encoded, strict=True))
        np.savez(folder / "encoded.npz", values=values, lengths=lengths, users=[len(part) for _, part in encoded])
    found = asdict(summary)
    return {name: found[name] for name in ("events", "user_rows", "batches", "events_per_second")}


def decode(settings: Settings, folder: Path, count: int | None) -> dict[str, Any]:
    """The agent that only decodes and commits."""
    stream, kafka = settings.stream, settings.kafka
    app = faust.App(
        f"{stream.group}-decode",
        broker=broker_urls(kafka),
        consumer_auto_offset_reset="earliest",
        stream_buffer_maxsize=2 * stream.batch_events,
        topic_allow_declare=False,
        topic_disable_leader=True,
        web_enabled=False,
        datadir=str(folder / "faust"),
    )
    topic = app.topic(kafka.topic, key_serializer="raw", value_serializer="raw", value_type=bytes, allow_empty=True)
    times: list[float] = []
    taken, finished = 0, asyncio.Event()

    @app.agent(topic)
    async def only_decode(events: Any) -> None:
        nonlocal taken
        async for batch in events.noack_take(stream.batch_events, within=stream.batch_seconds):
            times.append(time.perf_counter())
            messages = [event.message for event in batch]
            decoded = decode_batch(messages, settings.events)
            for event in batch:
                event.ack()
            await app.consumer.commit()
            taken += len(decoded.events)
            times.append(time.perf_counter())
            if count is not None and taken >= count:
                finished.set()

    async def run() -> None:
        await app.start()
        await finished.wait()
        await app.stop()

    asyncio.run(run())
    return {"events_per_second": round(taken / (times[-1] - times[0]), 1)}


def encode(settings: Settings, folder: Path, count: int | None) -> dict[str, Any]:
    """The encoder on what `work` has left."""
    (encoder,) = load_encoders(settings.features.releases_folder, [RELEASE])
    with np.load(folder / "encoded.npz") as stored:
        values, lengths, users = stored["values"], stored["lengths"], stored["users"]
    batches, event, user = [], 0, 0
    for size in users.tolist():
        of_batch = lengths[user : user + size]
        offsets = np.concatenate([[0], np.cumsum(of_batch)]).astype(np.int64)
        batches.append(Histories(values[event : event + offsets[-1]], offsets))
        event, user = event + int(offsets[-1]), user + size
    encoder.encode(batches[0])
    started = time.perf_counter()
    for batch in batches:
        encoder.encode(batch)
    assert count is not None
    return {"events_per_second": round(count / (time.perf_counter() - started), 1)}


PARTS = {"worker": work, "decode": decode, "encode": encode}


def _alone(part: str, settings_file: Path, *, count: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.stream", "--part", part, str(settings_file), "--events", str(count)]
    peak = 0.0
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        while process.poll() is None:
            peak = max(peak, tree_mb(process.pid))
            time.sleep(_LOOK_SECONDS)
        output = process.communicate()[0]
    if process.returncode:
        sys.exit(f"part `{part}` ended with status {process.returncode}")
    return json.loads(output.splitlines()[-1]) | {"peak_mb": round(peak)}


# -- how soon


class Asker:
    """Asks plain Feast for users' rows until each is as new as its event."""

    def __init__(self, feature_repo: Path) -> None:
        self.feast = FeatureStore(repo_path=str(feature_repo))
        self.feature = f"{user_embedding_view(RELEASE)}:event_time_ms"
        self.waiting: dict[str, tuple[int, int]] = {}  # user → (event time, append time)
        self.waited_ms: list[int] = []
        self.lock = threading.Lock()
        self.closing = False
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def sent(self, event: Event, append_time_ms: int) -> None:
        with self.lock:
            self.waiting.setdefault(event.user_id, (event.timestamp, append_time_ms))

    def close(self) -> None:
        self.closing = True
        self.thread.join(ANSWER_SECONDS)

    def _run(self) -> None:
        deadline = time.monotonic() + ANSWER_SECONDS * 10
        while not (self.closing and not self.waiting) and time.monotonic() < deadline:
            with self.lock:
                asked = dict(self.waiting)
            if asked:
                rows = [{"user_id": user} for user in asked]
                found = self.feast.get_online_features([self.feature], rows).to_dict()["event_time_ms"]
                now_ms = time.time_ns() // 1_000_000
                with self.lock:
                    for user, event_time in zip(asked, found, strict=True):
                        if event_time is not None and event_time >= asked[user][0]:
                            self.waited_ms.append(now_ms - asked[user][1])
                            self.waiting.pop(user)
            time.sleep(_ASK_SECONDS)


def readable(settings_file: Path, *, users: int, rate: float, seconds: float) -> dict[str, Any]:
    """Milliseconds from append to readable, of every _ASKED_EVERY-th event at a steady rate."""
    settings = load_settings(file=settings_file, environ={})
    command = [sys.executable, "-m", "benchmarks.stream", "--part", "worker", str(settings_file), "--events", "0"]
    worker = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    asker = Asker(settings.features.feature_repo)
    try:
        with closing(KafkaProducer(**settings.kafka.client_options(), linger_ms=20)) as producer:

            def send(event: Event) -> Any:
                value = encode_event(event)
                return producer.send(settings.kafka.topic, key=event.user_id.encode(), value=value)

            first = Event("first", "item-0", "view", "home", time.time_ns() // 1_000_000)
            asker.sent(first, send(first).get(30).timestamp)
            deadline = time.monotonic() + ANSWER_SECONDS
            while not asker.waited_ms:  # the worker has started
                if worker.poll() is not None or time.monotonic() > deadline:
                    sys.exit("the worker does not work")
                time.sleep(0.1)
            asker.waited_ms.clear()
            count = round(rate * seconds)
            started = time.monotonic()
            for n, event in enumerate(zipf_events(count, users=users, seed=9)):
                time.sleep(max(0.0, started + n / rate - time.monotonic()))
                event = event._replace(timestamp=time.time_ns() // 1_000_000)
                future = send(event)
                if n % _ASKED_EVERY == 0:
                    future.add_callback(lambda place, event=event: asker.sent(event, place.timestamp))
            producer.flush()
            rate_held = count / (time.monotonic() - started)
        asker.close()
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.wait(60)
    waited = np.array(asker.waited_ms)
    return {
        "events_per_second": round(rate_held),
        "asked": len(waited),
        "unanswered": len(asker.waiting),
        "p50": round(float(np.quantile(waited, 0.5))),
        "p99": round(float(np.quantile(waited, 0.99))),
    }


# -- the whole


def measure(*, events: int, users: int, rounds: int, redis: str, rate: float, seconds: float) -> dict[str, Any]:
    found: dict[str, list[dict[str, Any]]] = {part: [] for part in PARTS}
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        broker = stack.enter_context(running_broker(Path(scratch), zipf_events(events, users=users, seed=0)))
        files = []
        for turn in range(rounds + 1):
            folder = Path(scratch) / f"round-{turn}"
            applied_repo(folder, release=RELEASE, items=ITEMS, redis=f"{redis},db={turn}")
            files.append(write_settings(folder, kafka=broker, group=f"round-{turn}"))
            fill_store(load_settings(file=files[-1], environ={}), users=users)
        for file in files[:rounds]:
            for part in PARTS:
                found[part].append(_alone(part, file, count=events))
                print(f"{part}: {found[part][-1]['events_per_second']:,} events/s", file=sys.stderr)
        latency = None
        if seconds:
            _skip_what_is_there(files[-1])
            latency = readable(files[-1], users=users, rate=rate, seconds=seconds)
    best = {part: max(row["events_per_second"] for row in rows) for part, rows in found.items()}
    worker = max(found["worker"], key=lambda row: row["events_per_second"])
    return {
        "benchmark": "stream",
        "ratio": round(best["worker"] / min(best["decode"], best["encode"]), 3),
        "goal": GOAL,
        "events_per_second": {part: [row["events_per_second"] for row in rows] for part, rows in found.items()},
        "events_per_batch": round(worker["events"] / worker["batches"], 1),
        "unique_users_per_batch": round(worker["user_rows"] / worker["batches"], 1),
        "peak_mb": worker["peak_mb"],
        "readable_ms": latency,
        "goal_ms": GOAL_MS,
        "events": events,
        "users": users,
        "zipf_exponent": ZIPF,
        "partitions": PARTITIONS,
        "rounds": rounds,
    } | circumstances("faust-streaming")


def _skip_what_is_there(settings_file: Path) -> None:
    """The group begins at the topic's end."""
    settings = load_settings(file=settings_file, environ={})
    topic = settings.kafka.topic
    with GroupReader(settings.kafka, settings.stream.group) as reader:
        reader.commit(topic, {partition: end for partition, (_, end) in reader.watermarks(topic).items()}, note="")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redis", help="an empty Redis, HOST:PORT; each round takes a database of its own")
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rate", type=float, default=1000.0, help="events a second of the second part")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long it takes; 0 leaves it out")
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--keep", action="store_true", help=f"append the object to {RESULTS.name}")
    options = parser.parse_args()
    if options.part:
        part, file = options.part
        settings = load_settings(file=Path(file), environ={})
        print(json.dumps(PARTS[part](settings, Path(file).parent, options.events or None)))
        return
    if not options.redis:
        parser.error("--redis HOST:PORT is needed")
    found = measure(
        events=options.events,
        users=options.users,
        rounds=options.rounds,
        redis=options.redis,
        rate=options.rate,
        seconds=options.seconds,
    )
    finish(found, options, RESULTS, module="benchmarks.stream")


if __name__ == "__main__":
    main()
