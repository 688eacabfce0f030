"""What the worker does with a batch of records before the store: pure functions, tested with lists.

records → `decode_batch` → events + dead letters → `group_batch` → one history per user, ready for the writer.
A record is Faust's Message, as the source hands it out (streaming/kafka/source.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from spoor.activity.events import Event, decode_event, unknown_names
from spoor.activity.hashing import hash_items, hash_names
from spoor.activity.history import EVENT_DTYPE, Histories, Values, canonical
from spoor.activity.settings import EventSettings
from spoor.base.errors import InfrastructureError
from spoor.streaming.records.dead_letters import ORIGIN_CHARACTERS, REPLAY_HEADER, DeadLetter, refusal

if TYPE_CHECKING:
    from faust.types import Message

Int64s = npt.NDArray[np.int64]


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
class UserEvents:
    """The new events of a batch by user. Row i belongs to `user_ids[i]`; users in order of first appearance."""

    user_ids: list[str]
    events: Histories
    as_of_ms: Int64s
    partitions: list[int]  # the partition of the user's newest record


def decode_batch(records: Iterable[Message], settings: EventSettings) -> DecodedBatch:
    """Every record becomes an event or a dead letter, in the given order. Raises InfrastructureError if a schema
    registry that is needed does not answer."""
    events: list[Event] = []
    times: list[int] = []
    partitions: list[int] = []
    dead: list[DeadLetter] = []
    unknown: Counter[str] = Counter()
    mismatched = 0
    for record in records:
        append_time_ms = round(record.timestamp * 1000)
        try:
            event = decode_event(record.value, append_time_ms=append_time_ms, settings=settings)
        except InfrastructureError:
            raise
        except Exception as error:  # unknown bytes: whatever they provoke must not stop the partition for ever
            dead.append(_dead_letter(record, append_time_ms, error))
            continue
        events.append(event)
        times.append(append_time_ms)
        partitions.append(record.partition)
        unknown.update(unknown_names(event, settings))
        mismatched += record.key != event.user_id.encode()
    return DecodedBatch(events, np.array(times, np.int64), partitions, dead, mismatched, dict(unknown))


def group_batch(decoded: DecodedBatch, *, max_events: int, as_of: Literal["append", "event"]) -> UserEvents:
    """One history per user of the batch. As-of time of a user: the latest append time of its events, or with
    `as_of="event"` the latest event time."""
    index: dict[str, int] = {}
    rows = np.fromiter((index.setdefault(e.user_id, len(index)) for e in decoded.events), np.int64)
    values = event_values(decoded.events)
    times = decoded.append_times_ms if as_of == "append" else values["timestamp"]
    as_of_ms = np.full(len(index), np.iinfo(np.int64).min)
    np.maximum.at(as_of_ms, rows, times)
    partitions = dict(zip(rows.tolist(), decoded.partitions, strict=True))  # in the order of `index`; the newest wins
    histories = canonical(rows, values, len(index)).newest(max_events)
    return UserEvents(list(index), histories, as_of_ms, list(partitions.values()))


def event_values(events: Sequence[Event]) -> Values:
    """EVENT_DTYPE[n]: the events without their users, names replaced by their hashes."""
    values = np.empty(len(events), EVENT_DTYPE)
    if events:
        _, items, actions, surfaces, values["timestamp"] = zip(*events, strict=True)
        values["item"] = hash_items(items)
        values["action"], values["surface"] = _few(actions), _few(surfaces)
    return values


def _few(names: Sequence[str]) -> npt.NDArray[np.uint64]:
    """The hashes of names that are few: each is hashed once, and not once per event."""
    index = {name: place for place, name in enumerate(dict.fromkeys(names))}
    return hash_names(list(index))[[index[name] for name in names]]


def lost_range(*, committed: int | None, earliest: int) -> tuple[int, int] | None:
    """[start, end) of offsets that the group never processed and the broker no longer has, if there are any. A group
    without a committed offset starts at the earliest record and has lost nothing."""
    if committed is None or committed < 0 or committed >= earliest:
        return None
    return committed, earliest


def _dead_letter(record: Message, append_time_ms: int, error: Exception) -> DeadLetter:
    headers = record.headers or ()
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    header = next((value for name, value in pairs if name == REPLAY_HEADER and value is not None), None)
    replay_of = None if header is None else header.decode(errors="replace")[:ORIGIN_CHARACTERS]
    return DeadLetter(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        append_time_ms=append_time_ms,
        key=record.key,
        value=record.value,
        replay_of=replay_of,
        **refusal(error),
    )
