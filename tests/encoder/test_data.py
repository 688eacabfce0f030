"""Events to batches: targets, segments, order, sources, fingerprints."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from activity.errors import DataError
from activity.events import Event, events_table
from activity.hashing import hash_item
from activity.lake import Lake
from encoder.data import (
    build_vocabulary,
    epoch_order,
    load_batch,
    positives_by_user,
    read_activity,
    segments,
    training_events,
)

EVENTS = [
    Event("ann", "a", "save", "home", 1000),
    Event("ann", "b", "hide", "home", 2000),
    Event("ann", "c", "save", "home", 3000),
    Event("bob", "a", "save", "search", 1500),
    Event("cat", "b", "save", "home", 500),
    Event("cat", "c", "save", "home", 2500),
]


def lake_of(folder: Path, events: pa.Table) -> Lake:
    """The events as two work items, as an archive would write them."""
    lake = Lake(folder, buckets=4)
    rows = len(events)
    stored = events.append_column("partition", pa.array(np.zeros(rows, np.int32)))
    stored = stored.append_column("offset", pa.array(np.arange(rows)))
    stored = stored.append_column("append_time", events["timestamp"])
    lake.write("0-first", stored.slice(0, rows // 2), {"partition": 0, "start": 0, "end": rows // 2})
    lake.write("0-second", stored.slice(rows // 2), {"partition": 0, "start": rows // 2, "end": rows})
    return lake


def test_vocabulary_holds_every_name_in_the_order_of_hashes() -> None:
    vocabulary = build_vocabulary(read_activity(events_table(EVENTS), until_ms=None))
    assert sorted(vocabulary.item_ids) == ["a", "b", "c"]
    assert vocabulary.items.tolist() == [hash_item(item) for item in vocabulary.item_ids]
    assert vocabulary.items.tolist() == sorted(vocabulary.items.tolist())
    assert (len(vocabulary.actions), len(vocabulary.surfaces)) == (2, 2)


def test_lake_and_table_give_the_same_activity(tmp_path: Path) -> None:
    table = events_table(EVENTS)
    from_table = read_activity(table, until_ms=None)
    from_lake = read_activity(lake_of(tmp_path, table), until_ms=None)
    from_shuffle = read_activity(table.take([3, 1, 5, 0, 2, 4, 4]), until_ms=None)
    assert from_table.fingerprint == from_lake.fingerprint == from_shuffle.fingerprint
    assert from_lake.newest_ms == 3000
    assert from_lake.item_ids == ("a", "b", "c")
    assert from_lake.action_names == ("hide", "save")


@pytest.mark.parametrize("lake", [True, False], ids=["lake", "table"])
def test_until_is_exclusive(tmp_path: Path, lake: bool) -> None:
    table = events_table(EVENTS)
    source = lake_of(tmp_path, table) if lake else table
    activity = read_activity(source, until_ms=2500)
    assert activity.newest_ms == 2000
    assert len(activity.histories.values) == 4
    assert activity.fingerprint != read_activity(source, until_ms=None).fingerprint


def test_no_events_are_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no events"):
        read_activity(events_table(EVENTS), until_ms=500)
    with pytest.raises(DataError, match="no events"):
        read_activity(Lake(tmp_path, buckets=4), until_ms=None)


def test_a_target_is_the_next_positive_item_of_the_same_user() -> None:
    activity = read_activity(events_table(EVENTS), until_ms=None)
    vocabulary = build_vocabulary(activity)
    names = ("-", *vocabulary.item_ids)

    def targets(**options) -> list[str]:
        return [names[target] for target in training_events(activity.histories, vocabulary, **options).targets]

    assert targets(positive_actions=[]) == ["b", "c", "-", "-", "c", "-"]
    assert targets(positive_actions=["save"]) == ["-", "c", "-", "-", "c", "-"]
    assert targets(positive_actions=[], before_ms=2500) == ["b", "-", "-", "-"]


def test_positives_by_user_are_sorted_and_distinct() -> None:
    repeated = [Event("ann", item, "save", "home", time) for time, item in enumerate("abacab")]
    activity = read_activity(events_table([*repeated, Event("bob", "a", "save", "home", 9)]), until_ms=None)
    vocabulary = build_vocabulary(activity)
    positives = positives_by_user(training_events(activity.histories, vocabulary, positive_actions=[]))
    assert [sorted(vocabulary.item_ids[item - 1] for item in own) for own in positives] == [["a", "b", "c"], []]
    assert positives[0].tolist() == sorted(positives[0].tolist())


def test_segments_cover_every_event_once_and_keep_the_newest_together() -> None:
    slices = segments(np.array([0, 0, 3, 13, 14]), max_events=4)
    assert slices.tolist() == [[1, 0, 3], [2, 9, 13], [2, 5, 9], [2, 3, 5], [3, 13, 14]]


def test_an_epoch_takes_every_segment_once_within_the_budget() -> None:
    lengths = np.random.default_rng(0).integers(1, 40, 200)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    slices = np.stack([np.arange(200), bounds[:-1], bounds[1:]], axis=1)
    batches = epoch_order(slices, seed=1, epoch=0, token_budget=100)
    assert sorted(np.concatenate(batches)[:, 0].tolist()) == list(range(200))
    assert max((batch[:, 2] - batch[:, 1]).sum() for batch in batches) <= 100
    again = epoch_order(slices, seed=1, epoch=0, token_budget=100)
    assert all(np.array_equal(one, other) for one, other in zip(batches, again, strict=True))
    assert not np.array_equal(batches[0], epoch_order(slices, seed=1, epoch=1, token_budget=100)[0])
    assert not np.array_equal(batches[0], epoch_order(slices, seed=2, epoch=0, token_budget=100)[0])


def test_a_segment_above_the_budget_is_a_batch_of_its_own() -> None:
    slices = np.array([[0, 0, 50], [1, 50, 100]])
    assert len(epoch_order(slices, seed=0, epoch=0, token_budget=10)) == 2
    assert epoch_order(slices[:0], seed=0, epoch=0, token_budget=10) == []


def test_a_batch_holds_its_segments_one_after_the_other() -> None:
    activity = read_activity(events_table(EVENTS), until_ms=None)
    events = training_events(activity.histories, build_vocabulary(activity), positive_actions=[])
    batch = load_batch(events, np.array([[2, 4, 6], [0, 0, 3]]))
    assert batch.offsets.tolist() == [0, 2, 5]
    assert batch.users.tolist() == [2, 0]
    assert batch.items.tolist() == events.items[[4, 5, 0, 1, 2]].tolist()
    assert batch.targets.tolist() == events.targets[[4, 5, 0, 1, 2]].tolist()
    assert batch.tokens == 5
