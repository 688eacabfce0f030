"""What the worker does with a batch of records before and after the store: pure functions, tested with lists.

records → `decode_batch` → events + dead letters → `group_batch` → one history per user, ready for the writer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from spoor.activity.events import Event, decode_event, events_table, unknown_names
from spoor.activity.history import Histories, group_events, history_values
from spoor.activity.settings import EventSettings
from spoor.base.errors import InfrastructureError
from spoor.streaming.records.dead_letters import ORIGIN_CHARACTERS, REPLAY_HEADER, DeadLetter, refusal

Int64s = npt.NDArray[np.int64]


class Record(NamedTuple):
    """One Kafka record as it was fetched."""

    topic: str
    partition: int
    offset: int
    append_time_ms: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] = ()


@dataclass(frozen=True)
class DecodedBatch:
    """Event i came from partition `partitions[i]` and was appended at `append_times_ms[i]`."""

    events: list[Event]
    append_times_ms: Int64s
    partitions: list[int]
    dead_letters: list[DeadLetter]
    mismatched_keys: int  # events whose record's key is not their user id
    unknown_names: Mapping[str, int] = field(default_factory=dict)  # "action" or "surface" → events


@dataclass(frozen=True)
class UserBatch:
    """Row i belongs to `user_ids[i]`; users in order of first appearance."""

    user_ids: list[str]
    events: Histories
    as_of_ms: Int64s
    partitions: list[int]  # the partition of the user's newest record


def decode_batch(records: Iterable[Record], settings: EventSettings) -> DecodedBatch:
    """Every record becomes an event or a dead letter, in the given order. Raises InfrastructureError if a schema
    registry that is needed does not answer."""
    events: list[Event] = []
    times: list[int] = []
    partitions: list[int] = []
    dead: list[DeadLetter] = []
    unknown: Counter[str] = Counter()
    mismatched = 0
    for record in records:
        try:
            event = decode_event(record.value, append_time_ms=record.append_time_ms, settings=settings)
        except InfrastructureError:
            raise
        except Exception as error:  # unknown bytes: whatever they provoke must not stop the partition for ever
            dead.append(_dead_letter(record, error))
            continue
        events.append(event)
        times.append(record.append_time_ms)
        partitions.append(record.partition)
        unknown.update(unknown_names(event, settings))
        mismatched += record.key != event.user_id.encode()
    return DecodedBatch(events, np.array(times, np.int64), partitions, dead, mismatched, dict(unknown))


def group_batch(decoded: DecodedBatch, *, max_events: int, as_of: Literal["append", "event"]) -> UserBatch:
    """One history per user of the batch. As-of time of a user: the latest append time of its events, or with
    `as_of="event"` the latest event time."""
    users = [event.user_id for event in decoded.events]
    values = history_values(events_table(decoded.events))
    user_ids, histories = group_events(users, values, max_events=max_events)
    index = {user: row for row, user in enumerate(user_ids)}
    rows = np.fromiter((index[user] for user in users), np.int64, count=len(users))
    times = decoded.append_times_ms if as_of == "append" else values["timestamp"]
    as_of_ms = np.full(len(user_ids), np.iinfo(np.int64).min)
    np.maximum.at(as_of_ms, rows, times)
    newest_partition = dict(zip(users, decoded.partitions, strict=True))
    return UserBatch(user_ids, histories, as_of_ms, [newest_partition[user] for user in user_ids])


def lost_range(*, committed: int | None, earliest: int) -> tuple[int, int] | None:
    """[start, end) of offsets that the group never processed and the broker no longer has, if there are any. A group
    without a committed offset starts at the earliest record and has lost nothing."""
    if committed is None or committed < 0 or committed >= earliest:
        return None
    return committed, earliest


def _dead_letter(record: Record, error: Exception) -> DeadLetter:
    header = next((value for name, value in record.headers if name == REPLAY_HEADER and value is not None), None)
    replay_of = None if header is None else header.decode(errors="replace")[:ORIGIN_CHARACTERS]
    return DeadLetter(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        append_time_ms=record.append_time_ms,
        key=record.key,
        value=record.value,
        replay_of=replay_of,
        **refusal(error),
    )
