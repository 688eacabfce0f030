"""`spoor simulate`: sends events to Kafka, from a file or synthetic ones, as a product would.

Records are keyed by the user id in UTF-8, so that one user's events stay in order in one partition. The event's time is
in the value; the broker sets the record's time. Only events that the broker has confirmed are counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from spoor.activity.events import Event, encode_event, event_encoder
from spoor.activity.rules import check_time
from spoor.activity.simulator import SimulatorSettings, simulate
from spoor.activity.sources.event_files import read_events
from spoor.base.errors import EventError, InfrastructureError, UsageError
from spoor.base.numbers import number_text
from spoor.base.terminal import progress_bar
from spoor.base.times import iso_text
from spoor.broker.create_topics import ensure_topics
from spoor.broker.producer import Producer, Record
from spoor.broker.settings import KafkaSettings
from spoor.config import Settings
from spoor.console import say

_BATCH_EVENTS = 5_000  # confirmed together
_PACE_SECONDS = 0.05  # with a rate: length of a burst
_AGAIN = "check the broker (`spoor services status`), then run again: sending an event twice changes nothing"


@dataclass(frozen=True)
class SimulateResult:
    topic: str
    events: int  # confirmed by the broker
    users: int
    first_ms: int | None  # earliest event time
    last_ms: int | None  # latest event time
    seconds: float
    events_per_second: float
    dry_run: bool
    refused: tuple[str, ...] = ()  # rows of the file not sent: the settings require int64 ids, and theirs are not


def run_simulate(
    settings: Settings,
    *,
    data: Path | None = None,
    synthetic: SimulatorSettings | None = None,
    from_ms: int | None = None,
    to_ms: int | None = None,
    rate: float | None = None,
    dry_run: bool = False,
) -> SimulateResult:
    """Sends the events of the file `data` with times in [from_ms, to_ms), oldest first, or those of `synthetic`; at
    most `rate` per second, default: as fast as the broker confirms. `dry_run` only counts.

    Events of a file whose ids Feast's entities cannot hold are skipped, because they would be dead letters. Raises
    UsageError for a bad file, range or rate; InfrastructureError if a delivery is not confirmed.
    """
    if (data is None) == (synthetic is None):
        raise ValueError("give either a file or a simulation")
    refused: list[str] = []
    tables, total = _source(settings, data, synthetic, from_ms, to_ms, refused)
    say(f"{total:,} events from {data or 'the simulator'} to topic `{settings.kafka.topic}`" + _at(rate))
    if dry_run:
        return replace(_result(settings.kafka.topic, tables, seconds=0.0, dry_run=True), refused=tuple(refused))
    for topic in ensure_topics(settings.kafka):
        say(topic.describe())
    encode = event_encoder(settings.events, settings.kafka.topic)
    result = produce(settings.kafka, tables, total=total, rate=rate, encode=encode)
    return replace(result, refused=tuple(refused))


def produce(
    kafka: KafkaSettings,
    tables: Iterable[pa.Table],
    *,
    total: int,
    rate: float | None = None,
    encode: Callable[[Event], bytes] = encode_event,
) -> SimulateResult:
    """Sends tables of EVENT_SCHEMA to the activity topic, which must exist. `total`: number of events, for the progress
    bar. Raises UsageError for a rate not above 0, InfrastructureError if a delivery is not confirmed."""
    if rate is not None and not rate > 0:
        raise UsageError(f"rate is {rate} events/s, expected above 0", hint="leave --rate out for full speed")
    started = time.monotonic()
    sent: list[pa.Table] = []
    with (
        Producer(kafka, linger_ms=5, batch_size=128 * 1024) as producer,
        progress_bar("simulate", total=total, unit="events") as show,
    ):
        for table in tables:
            for batch in _batches(table, rate, started, sum(len(t) for t in sent)):
                records = [Record(kafka.topic, event.user_id.encode(), encode(event)) for event in _rows(batch)]
                try:
                    producer.deliver(records)
                except InfrastructureError as error:
                    raise InfrastructureError(
                        f"{kafka.address} did not confirm a delivery to topic `{kafka.topic}` ({error.message}); "
                        f"{producer.confirmed:,} events were confirmed",
                        hint=_AGAIN,
                    ) from error
                show(advance=len(batch))
                sent.append(batch.select(["user_id", "timestamp"]))
    return _result(kafka.topic, sent, seconds=time.monotonic() - started, dry_run=False)


def _source(
    settings: Settings,
    data: Path | None,
    synthetic: SimulatorSettings | None,
    from_ms: int | None,
    to_ms: int | None,
    refused: list[str],
) -> tuple[Iterable[pa.Table], int]:
    if synthetic is not None:
        _check_times(settings, synthetic)
        return simulate(synthetic), synthetic.events
    assert data is not None
    events = read_events(data, settings.events, now_ms=time.time_ns() // 1_000_000, unfit=refused)
    if from_ms is not None:
        events = events.filter(pc.field("timestamp") >= from_ms)
    if to_ms is not None:
        events = events.filter(pc.field("timestamp") < to_ms)
    return [events], len(events)


def _check_times(settings: Settings, synthetic: SimulatorSettings) -> None:
    """Raises UsageError if workers would refuse the first or last event for its time."""
    now_ms, earliest = time.time_ns() // 1_000_000, iso_text(settings.events.earliest_ms)
    for which, time_ms in (("first", synthetic.from_ms), ("last", synthetic.to_ms)):
        try:
            check_time(time_ms, append_time_ms=now_ms, settings=settings.events)
        except EventError as error:
            found = f"the {which} event would be of {iso_text(time_ms)}"
            if error.reason == "too-early":
                hint = f"give --from {earliest} or later, or set events.earliest"
                raise UsageError(f"{found}, before events.earliest", hint=hint) from None
            hint = "leave --from and --to out, or give times that have passed"
            raise UsageError(f"{found}, which lies in the future", hint=hint) from None


def _batches(events: pa.Table, rate: float | None, started: float, before: int) -> Iterator[pa.Table]:
    """Slices of the table; with a rate, each waits until it is due, by `started` and the number of events `before` the
    table."""
    size = _BATCH_EVENTS if rate is None else max(1, min(_BATCH_EVENTS, round(rate * _PACE_SECONDS)))
    for start in range(0, len(events), size):
        if rate is not None:
            due = started + (before + start) / rate
            time.sleep(max(0.0, due - time.monotonic()))
        yield events.slice(start, size)


def _rows(events: pa.Table) -> Iterator[Event]:
    columns = [events[name].to_pylist() for name in Event._fields]
    return (Event(*row) for row in zip(*columns, strict=True))


def _result(topic: str, tables: Iterable[pa.Table], *, seconds: float, dry_run: bool) -> SimulateResult:
    events, users, times = 0, set[str](), list[int]()
    for table in tables:
        if len(table):
            events += len(table)
            users.update(table["user_id"].unique().to_pylist())
            found = table["timestamp"].to_numpy()
            times += [int(found.min()), int(found.max())]
    speed = events / seconds if seconds else 0.0
    first_ms, last_ms = min(times, default=None), max(times, default=None)
    return SimulateResult(topic, events, len(users), first_ms, last_ms, seconds, speed, dry_run)


def _at(rate: float | None) -> str:
    return "" if rate is None else f" at {number_text(rate)} events/s"
