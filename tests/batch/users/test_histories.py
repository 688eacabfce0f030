from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spoor.activity.events import Event
from spoor.activity.history import EVENT_DTYPE, Histories, equal_rows
from spoor.activity.lake import LAKE_SCHEMA, Lake
from spoor.batch.users.histories import (
    PLACES,
    UserBatch,
    bucket_groups,
    cut,
    newest_histories,
    newest_slices,
    snapshot_slices,
    snapshot_times,
)

L = 5
Rows = list[tuple[int, int, int, int]]
Sql = Callable[..., dict[str, Rows]]


def _events(seed: int, count: int) -> list[Event]:
    random = np.random.default_rng(seed)
    return [
        Event(f"user-{u}", f"item-{i}", ("view", "buy")[a], "web", 1_000_000 + int(t))
        for u, i, a, t in zip(
            random.integers(0, 13, count),
            random.integers(0, 6, count),
            random.integers(0, 2, count),
            random.integers(0, 50, count) * 10,  # many equal times
            strict=True,
        )
    ]


def _lake(folder: Path, parts: list[list[Event]]) -> Lake:
    lake = Lake(folder, buckets=3)
    offset = 0
    for number, events in enumerate(parts):
        rows = [(*event, 0, offset + n, 5_000_000 + offset + n) for n, event in enumerate(events)]
        lake.write(
            f"item-{number}",
            _lake_table(rows),
            {"topic": "t", "partition": 0, "start": offset, "end": offset + len(rows)},
        )
        offset += len(rows)
    return lake


def _lake_table(rows: list[tuple[str | int, ...]]) -> pa.Table:
    """Rows in the order of LAKE_SCHEMA."""
    columns = list(zip(*rows, strict=True)) or [()] * len(LAKE_SCHEMA)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, LAKE_SCHEMA, strict=True)], schema=LAKE_SCHEMA)


def _as_rows(batch: UserBatch) -> dict[str, Rows]:
    return {user: batch.histories[row].tolist() for row, user in enumerate(batch.user_ids)}


def _snapshot_batches(lake: Lake, bucket: int, times: list[int], **options: Any) -> Iterator[UserBatch]:
    whole = [(0, len(times) * PLACES)]
    return (batch for _, batch in snapshot_slices(lake, [bucket], whole, times_ms=times, max_events=L, **options))


def _all(lake: Lake, **options: object) -> dict[str, Rows]:
    found: dict[str, Rows] = {}
    for bucket in range(lake.buckets):
        found |= _as_rows(newest_histories(lake, [bucket], max_events=L, **options))  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("fold_events", [1, 40, 1_000_000])
@pytest.mark.parametrize("before", [None, 1_000_250, 1_000_000])
def test_newest_histories_are_what_sql_says(
    tmp_path: Path, sql_histories: Sql, fold_events: int, before: int | None
) -> None:
    events = _events(1, 400)
    lake = _lake(tmp_path, [events[:150], events[100:390], [], events[390:]])
    assert _all(lake, to_ms=before, fold_events=fold_events) == sql_histories(events, L, before=before)


def test_as_of_is_the_latest_append_or_event_time_of_the_user(tmp_path: Path) -> None:
    late = Event("user-1", "a", "view", "web", 10)
    lake = _lake(tmp_path, [[Event("user-1", "b", "view", "web", 50)], [late]])
    (bucket,) = (bucket for bucket in range(lake.buckets) if lake.files(bucket))
    assert newest_histories(lake, [bucket], max_events=L).as_of_ms.tolist() == [5_000_001]
    assert newest_histories(lake, [bucket], max_events=L, as_of="event").as_of_ms.tolist() == [50]
    assert newest_histories(lake, [bucket], max_events=L, to_ms=70, as_of="event").as_of_ms.tolist() == [70]
    assert newest_histories(lake, [bucket], max_events=L, to_ms=70).as_of_ms.tolist() == [5_000_001]


def test_users_come_in_order_of_their_ids(tmp_path: Path) -> None:
    lake = _lake(tmp_path, [_events(2, 100)])
    for bucket in range(lake.buckets):
        user_ids = newest_histories(lake, [bucket], max_events=L).user_ids
        assert user_ids == sorted(user_ids)


def test_snapshots_are_what_sql_says_at_each_time_and_only_of_users_that_changed(
    tmp_path: Path, sql_histories: Sql
) -> None:
    events = _events(3, 300)
    lake = _lake(tmp_path, [events[:200], events[200:]])
    times = snapshot_times(1_000_060, 1_000_300, 40)
    assert times[0] == 1_000_060 and times[-1] == 1_000_300
    found: dict[int, dict[str, Rows]] = {time: {} for time in times}
    for bucket in range(lake.buckets):
        for batch in _snapshot_batches(lake, bucket, times, as_of="event", slice_users=7):
            assert len(batch.user_ids) <= 7
            for row, (user, time) in enumerate(zip(batch.user_ids, batch.as_of_ms.tolist(), strict=True)):
                assert user not in found[time]
                found[time][user] = batch.histories[row].tolist()
    for time in times:
        now = sql_histories(events, L, before=time)
        assert found[time] == {user: rows for user, rows in now.items() if _grew(events, user, time, times)}


_SPANS = st.lists(st.integers(0, 60), max_size=6).map(sorted)


@settings(max_examples=200, deadline=None)
@given(places=st.lists(st.integers(0, 59)), bounds=_SPANS, slice_rows=st.integers(1, 5))
def test_spans_are_cut_into_slices_that_hold_each_place_of_theirs_once(
    places: list[int], bounds: list[int], slice_rows: int
) -> None:
    spans = [(start, end) for start, end in zip(bounds[::2], bounds[1::2], strict=False) if start < end]
    places.sort()
    slices = list(cut(np.array(places, np.int64), spans, slice_rows=slice_rows))
    for start, end in spans:
        own = [span for span, _ in slices if start <= span[0] < end]
        assert [own[0][0], *(after for _, after in own)] == [*(before for before, _ in own), end]
        assert own[0][0] == start
    for (start, end), rows in slices:
        held = places[rows]
        assert held == [place for place in places if start <= place < end]
        assert len(set(held)) <= slice_rows and (len(held) <= slice_rows or held.count(held[-1]) > 1)


def test_what_spans_leave_is_read_whoever_has_come_or_gone_since(tmp_path: Path) -> None:
    """Nobody is read twice, and nobody is passed over who was there at both times."""
    events = _events(7, 300)
    lake = _lake(tmp_path / "before", [events])
    first = list(newest_slices(newest_histories(lake, range(3), max_events=L), [(0, PLACES)], slice_users=2))
    done, waiting = first[::2], [span for span, _ in first[1::2]]
    others = [event._replace(user_id=f"new-{n % 5}") for n, event in enumerate(events[:60])]
    lake = _lake(tmp_path / "after", [[event for event in events if event.user_id != "user-4"], others])
    second = newest_slices(newest_histories(lake, range(3), max_events=L), waiting, slice_users=2)
    read = [user for _, batch in (*done, *second) for user in batch.user_ids]
    assert len(read) == len(set(read))
    assert {f"user-{n}" for n in range(13)} - {"user-4"} <= set(read)


def _grew(events: list[Event], user: str, time: int, times: list[int]) -> bool:
    previous = times[times.index(time) - 1] if time != times[0] else 0
    return any(event.user_id == user and previous <= event.timestamp < time for event in events)


def test_no_snapshot_holds_an_event_at_or_after_its_time(tmp_path: Path) -> None:
    times = snapshot_times(1_000_100, 1_000_400, 100)  # events lie exactly on these times
    lake = _lake(tmp_path, [_events(4, 500)])
    for bucket in range(lake.buckets):
        for batch in _snapshot_batches(lake, bucket, times, as_of="event"):
            assert (batch.histories.last_times() < batch.as_of_ms).all()


def test_a_snapshot_with_an_event_that_came_late_is_known_from_when_it_came(tmp_path: Path) -> None:
    """Else a point-in-time read at the snapshot's time would see what nobody knew then."""
    times = [100, 200, 300]
    rows = [("a", 10, 50), ("a", 20, 250), ("a", 110, 120), ("a", 210, 215), ("b", 30, 40), ("b", 130, 135)]
    table = _lake_table([(u, f"item-{n}", "view", "web", time, 0, n, at) for n, (u, time, at) in enumerate(rows)])
    lake = Lake(tmp_path / "late", buckets=1)
    lake.write("item", table, {"partition": 0, "start": 0, "end": len(rows)})
    found: dict[str, list[int]] = {"a": [], "b": []}
    for batch in _snapshot_batches(lake, 0, times):
        for user, known in zip(batch.user_ids, batch.as_of_ms.tolist(), strict=True):
            found[user].append(known)
    assert found == {"a": [250, 250, 300], "b": [100, 200]}


_RECORDS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 60), st.integers(0, 40)), min_size=1, max_size=25)


@settings(max_examples=100, deadline=None)
@given(records=_RECORDS, from_ms=st.integers(1, 40), every_ms=st.integers(1, 25), count=st.integers(1, 4))
def test_nothing_later_leaks_into_a_snapshot(
    records: list[tuple[int, int, int]], from_ms: int, every_ms: int, count: int
) -> None:
    """Records are (user, event time, how much later it was appended). What happens at or after T changes no snapshot
    of T, and no row may be read before its events had happened and were appended."""
    times = snapshot_times(from_ms, from_ms + (count - 1) * every_ms, every_ms)
    whole = _snapshots(records, times, as_of="event")
    for number, time in enumerate(times, 1):
        earlier = [record for record in records if record[1] < time]
        assert _snapshots(earlier, times[:number], as_of="event") == [row for row in whole if row[0] <= time]
    appended = {(f"user-{user}", time): time + delay for user, time, delay in sorted(records, reverse=True)}
    for known_from, user, history in _snapshots(records, times, as_of="append"):
        assert all(time < known_from and appended[user, time] <= known_from for time in history)


def _snapshots(
    records: list[tuple[int, int, int]], times: list[int], *, as_of: Literal["append", "event"]
) -> list[tuple[int, str, list[int]]]:
    """Per row: from when on it may be read, the user, its events' times; sorted."""
    rows = [(f"user-{u}", "item", "view", "web", time, 0, n, time + late) for n, (u, time, late) in enumerate(records)]
    with TemporaryDirectory() as folder:
        lake = Lake(Path(folder), buckets=1)
        lake.write("item", _lake_table(rows), {"topic": "t", "partition": 0, "start": 0, "end": len(rows)})
        return sorted(
            (known_from, user, batch.histories[n]["timestamp"].tolist())
            for batch in _snapshot_batches(lake, 0, times, as_of=as_of)
            for n, (user, known_from) in enumerate(zip(batch.user_ids, batch.as_of_ms.tolist(), strict=True))
        )


def test_several_buckets_are_read_like_one(tmp_path: Path, sql_histories: Sql) -> None:
    events = _events(5, 300)
    lake = _lake(tmp_path, [events])
    batch = newest_histories(lake, range(lake.buckets), max_events=L)
    assert batch.user_ids == sorted(batch.user_ids)
    assert _as_rows(batch) == sql_histories(events, L)


def test_small_buckets_are_grouped_up_to_a_number_of_events(tmp_path: Path) -> None:
    lake = _lake(tmp_path, [_events(6, 300)])
    assert bucket_groups(lake, group_events=300) == [(0, 1, 2)]
    assert bucket_groups(lake, group_events=1) == [(0,), (1,), (2,)]
    sizes = [len(lake.read(bucket=bucket)) for bucket in range(3)]
    assert bucket_groups(lake, group_events=sizes[0] + sizes[1]) == [(0, 1), (2,)]
    assert bucket_groups(_lake(tmp_path / "empty", [])) == []


def test_a_bucket_without_events_gives_no_rows(tmp_path: Path) -> None:
    lake = _lake(tmp_path, [[Event("user-1", "a", "view", "web", 10)]])
    empty = next(bucket for bucket in range(lake.buckets) if not lake.files(bucket))
    assert newest_histories(lake, [empty], max_events=L).user_ids == []
    (batch,) = _snapshot_batches(lake, empty, [100])
    assert batch.user_ids == []


@pytest.mark.parametrize("lengths", [[], [0], [3, 0, 1]])
def test_a_batch_survives_arrow(lengths: list[int]) -> None:
    random = np.random.default_rng(0)
    size = EVENT_DTYPE.itemsize
    per_user = [np.frombuffer(random.bytes(count * size), EVENT_DTYPE) for count in lengths]
    as_of_ms = np.arange(len(lengths), dtype=np.int64)
    batch = UserBatch([f"user-{n}" for n in range(len(lengths))], Histories.of(per_user), as_of_ms)
    again = UserBatch.from_arrow(batch.to_arrow())
    assert again.user_ids == batch.user_ids
    assert equal_rows(again.histories, batch.histories).all()
    assert again.as_of_ms.tolist() == as_of_ms.tolist()


def test_users_whose_ids_the_entity_cannot_hold_can_be_left_out():
    users = ["7", "007", "ann", "-12", str(2**63)]
    batch = UserBatch(users, Histories.empty(len(users)), np.arange(len(users)))
    assert batch.of_type("string").user_ids == users
    fit = batch.of_type("int64")
    assert (fit.user_ids, fit.as_of_ms.tolist(), fit.histories.count) == (["7", "-12"], [0, 3], 2)
