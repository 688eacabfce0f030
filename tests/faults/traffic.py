"""What the producers of a scenario do, and what they remember for the judge."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from kafka import KafkaProducer

from tests.faults.formats import event_json
from tests.faults.harness import LONG_SECONDS, World
from tests.faults.judge import Sent
from tests.faults.names import ACTIONS, ITEMS, SURFACES

START_MS = 1_750_000_000_000
BAD_VALUES = (
    b"not json",
    b"",
    b"[]",
    b'{"user_id": 1}',
    b'{"user_id": "u", "item_id": "i"}',
    b"\xff\xfe",
    None,
    b"{" * 40_000,
)


class Event(NamedTuple):
    user_id: str
    item_id: str
    action: str
    surface: str
    timestamp: int

    def json(self) -> bytes:
        return event_json(*self)


class Traffic:
    """Random events (some repeated, late, or under a key that is not their user) and bad records. `clock`: the
    present, in ms; by default it moves by half a second with every event."""

    def __init__(self, world: World, *, seed: int = 7, users: int = 80, clock: Callable[[], int] | None = None) -> None:
        self.world = world
        self.users = users
        self.random = random.Random(seed)
        self.clock = clock or (lambda: START_MS + len(self.events) * 500)
        self.events: list[Event] = []
        self.sent: list[Sent] = []
        self.records = 0
        self.bad: dict[str, tuple[bytes | None, bytes | None]] = {}  # topic/partition/offset → (key, value)

    def produce(self, events: int, *, bad: int = 0, pieces: int = 1, seconds: float = 0.0) -> None:
        """Returns when all are acknowledged; with several pieces one waits for the other. They are spread over so many
        seconds, in which something is to break."""
        started = time.monotonic()
        with self.world.producer() as producer:
            for piece in range(pieces):
                time.sleep(max(0.0, started + seconds * piece / pieces - time.monotonic()))
                self._produce(producer, events // pieces, bad // pieces)

    def send(self, events: Sequence[Event], *, bad: Sequence[bytes | None] = ()) -> None:
        """In the given order, with bad records in between. Returns when all are acknowledged."""
        with self.world.producer() as producer:
            self._send(producer, events, bad)

    def send_large(self, *values: bytes) -> None:
        """Bad records that only compression brings through the broker's limit."""
        with self.world.producer(compression_type="gzip", max_request_size=1 << 24) as producer:
            for value in values:
                self._send(producer, [], [value])

    @contextmanager
    def flowing(
        self, events: int, *, bad: int = 0, pieces: int = 10, seconds: float = 0.0
    ) -> Iterator[Callable[[], bool]]:
        """As `produce`, in a thread. Yields whether it has ended; at the end waits for it."""
        with self._in_thread(lambda: self.produce(events, bad=bad, pieces=pieces, seconds=seconds)) as ended:
            yield ended

    @contextmanager
    def endless(self, *, events_per_second: int) -> Iterator[None]:
        """Produces ten times a second, one record in a hundred a bad one, until the block ends."""
        done = threading.Event()

        def flow() -> None:
            with self.world.producer() as producer:
                while not done.wait(0.1):
                    self._produce(
                        producer, events_per_second // 10, int(self.random.random() < events_per_second / 1000)
                    )

        with self._in_thread(flow):
            try:
                yield
            finally:
                done.set()

    def event(self) -> Event:
        """A new one, or one of those sent before."""
        pick = self.random
        if self.events and pick.random() < 0.1:
            return pick.choice(self.events)
        return Event(
            user_id=f"user-{int(self.users * pick.random() ** 2)}",  # a few users have most of the events
            item_id=pick.choice(ITEMS),
            action=pick.choice(ACTIONS),
            surface=pick.choice(SURFACES),
            timestamp=self.clock() - pick.choice((0, 0, 0, 1, 60_000, 3_600_000)),  # ties, and late by up to an hour
        )

    def _produce(self, producer: KafkaProducer, events: int, bad: int) -> None:
        made = [self.event() for _ in range(events)]
        self._send(producer, made, [self.random.choice(BAD_VALUES) for _ in range(bad)])

    def _send(self, producer: KafkaProducer, events: Sequence[Event], bad: Sequence[bytes | None]) -> None:
        records: list[tuple[bytes, bytes | None, Event | None]] = []
        for event in events:
            key = "someone else" if self.random.random() < 0.02 else event.user_id
            records.append((key.encode(), event.json(), event))
        for value in bad:
            records.insert(self.random.randint(0, len(records)), (b"bad", value, None))
        topic = self.world.settings.kafka.topic
        futures = [producer.send(topic, key=key, value=value) for key, value, _ in records]
        for future, (key, value, event) in zip(futures, records, strict=True):
            where = future.get(timeout=LONG_SECONDS)
            if event is None:
                self.bad[f"{topic}/{where.partition}/{where.offset}"] = key, value
            else:
                self.sent.append(Sent(*event, where.partition, where.offset))
        self.events += events
        self.records += len(records)

    @contextmanager
    def _in_thread(self, work: Callable[[], None]) -> Iterator[Callable[[], bool]]:
        failures: list[BaseException] = []

        def run() -> None:
            try:
                work()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield lambda: not thread.is_alive()
        finally:
            thread.join()
        assert not failures, failures
