import bisect

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spoor.activity.events import Event, events_table
from spoor.base.errors import DataError
from spoor.feature_repo.definitions import source_folder
from spoor.ranking.features.dataset import (
    ITEM_COLUMNS,
    USER_COLUMNS,
    Request,
    candidate_parts,
    existing_inputs,
    find_requests,
    read_features,
    sample_requests,
    training_rows,
    vectors_of,
)
from spoor.ranking.features.online import feast_reader
from tests.ranking.world import DAY, DIMENSION, RELEASE, START, TRAINED, World, candidate_rows, frame_of

MINUTE = 60_000


def events_of(*rows: tuple[str, str, str, int]) -> pa.Table:
    return events_table([Event(user, item, action, "s", time) for user, item, action, time in rows])


def feature_table(**columns: list) -> pa.Table:
    numbers = {name: pa.array([1.0, 2.0], pa.float64()) for name in (*USER_COLUMNS, *ITEM_COLUMNS)}
    vectors = {name: pa.array([[1.0, 0.0], [0.6, 0.8]]) for name in ("embedding", "item_embedding")}
    return pa.table(numbers | vectors | columns)


def users_known(features: pa.Table) -> np.ndarray:
    """Per row: did the user have an embedding at that time?"""
    return vectors_of(features)[0].any(1)


def products_of(features: pa.Table) -> np.ndarray:
    """What a ranker makes of both vectors: their product per dimension and its sum."""
    users, items = vectors_of(features)
    return np.concatenate([users * items, (users * items).sum(1, keepdims=True)], 1)


def test_a_visit_ends_with_a_pause_and_asks_for_what_follows_it():
    table = events_of(
        ("u", "old", "like", 5),
        ("u", "a", "like", 100 * MINUTE),
        ("u", "b", "view", 101 * MINUTE),
        ("u", "c", "like", 130 * MINUTE),
        ("u", "a", "like", 160 * MINUTE),
        ("u", "d", "like", 161 * MINUTE),
        ("v", "a", "view", 100 * MINUTE),
        ("u", "late", "like", 500 * MINUTE),
    )
    found = find_requests(table, from_ms=50 * MINUTE, to_ms=400 * MINUTE, positive_actions=["like"])
    assert [(r.user_id, r.time_ms, r.relevant) for r in found] == [
        ("u", 100 * MINUTE - 1, ("a", "c")),
        ("u", 160 * MINUTE - 1, ("d",)),  # a was seen in the visit before
    ]
    assert found[0].seen == {"old"}
    assert found[1].seen == {"old", "a", "b", "c"}


def test_a_visit_over_the_cut_is_asked_again_at_the_cut():
    table = events_of(("u", "a", "like", 10), ("u", "b", "like", 20), ("u", "c", "like", 30))
    before = find_requests(table, from_ms=0, to_ms=20)
    after = find_requests(table, from_ms=20, to_ms=100)
    assert [r.relevant for r in before] == [("a",)]
    assert [(r.relevant, r.seen, r.time_ms) for r in after] == [(("b", "c"), frozenset({"a"}), 19)]


@pytest.mark.parametrize("table", [events_of(), events_of(("u", "a", "view", 5))])
def test_without_a_positive_action_there_is_no_request(table):
    assert find_requests(table, from_ms=0, to_ms=10, positive_actions=["like"]) == []


def test_training_rows_hold_relevant_items_and_unseen_others_once():
    table = events_of(("u", "a", "like", 1), ("u", "b", "like", 1000 * MINUTE), ("u", "c", "like", 1001 * MINUTE))
    requests = find_requests(table, from_ms=500 * MINUTE, to_ms=2000 * MINUTE)
    catalogue = [*"abcdefghijklmnop"]
    rows = frame_of(training_rows(requests, catalogue, negatives=3))
    assert sorted(rows.loc[rows["label"] == 1, "item_id"]) == ["b", "c"]
    others = rows.loc[rows["label"] == 0, "item_id"]
    assert len(others) == len(set(others)) == 6
    assert not set(others) & {"a", "b", "c"}
    assert set(rows["event_timestamp"]) == {pd.Timestamp(1000 * MINUTE - 1, unit="ms", tz="UTC")}
    pd.testing.assert_frame_equal(rows, frame_of(training_rows(requests, catalogue, negatives=3)))


def test_candidates_are_every_unseen_item_in_an_order_that_tells_nothing():
    table = events_of(("u", "a", "like", 1), ("u", "b", "like", 1000 * MINUTE))
    requests = find_requests(table, from_ms=2, to_ms=2000 * MINUTE)
    catalogue = [f"x{k}" for k in range(50)] + ["a", "b"]
    rows = candidate_rows(requests, catalogue)
    assert sorted(rows["item_id"]) == sorted(item for item in catalogue if item != "a")
    assert list(rows.loc[rows["label"] == 1, "item_id"]) == ["b"]
    assert list(rows["item_id"]) != sorted(rows["item_id"])


def test_point_in_time_features_equal_a_search_by_hand(world: World):
    requests = find_requests(world.events, from_ms=START + 15 * DAY, to_ms=START + 40 * DAY)
    rows = candidate_rows(requests, world.items)
    [(where, found)] = read_features(rows, feast_reader(world.features, RELEASE), chunk_rows=10**6)
    assert where == slice(0, len(rows))
    expected = {
        name: known_rows(world, view, key)
        for name, view, key in (
            ("user_events_total", "user_activity", "user_id"),
            ("item_events_28d", "item_activity", "item_id"),
            ("embedding", "user_embedding_tiny_1", "user_id"),
            ("item_embedding", "item_embedding_tiny_1", "item_id"),
        )
    }
    nulls = dict.fromkeys(expected, 0)
    for index, row in enumerate(rows.itertuples()):
        for name, (key, log) in expected.items():
            by_hand = newest_known(log.get(getattr(row, key), []), row.event_timestamp, name)
            value = found[name][index].as_py()
            nulls[name] += value is None
            assert value == by_hand if by_hand is None else value == pytest.approx(by_hand)
    assert 0 < nulls["embedding"] < len(rows)
    assert 0 < nulls["item_embedding"] < len(rows)  # before the model was trained there is no vector


def known_rows(world: World, view: str, key: str) -> tuple[str, dict[str, list[dict]]]:
    files = sorted(source_folder(world.features, view).rglob("*.parquet"))
    log: dict[str, list[dict]] = {}
    for row in pa.concat_tables([pq.ParquetFile(f).read() for f in files], promote_options="default").to_pylist():
        log.setdefault(row[key], []).append(row)
    for rows in log.values():
        rows.sort(key=lambda r: (r["event_timestamp"], r["created_timestamp"]))
    return key, log


def newest_known(log: list[dict], moment: pd.Timestamp, name: str):
    known = [row for row in log if row["created_timestamp"] <= moment]
    position = bisect.bisect_right([row["event_timestamp"] for row in known], moment)
    return known[position - 1][name] if position else None


def test_a_later_snapshot_does_not_reach_an_earlier_request(world: World):
    requests = find_requests(world.events, from_ms=TRAINED, to_ms=START + 21 * DAY)
    rows = candidate_rows(requests, world.items)
    [(_, found)] = read_features(rows, feast_reader(world.features, RELEASE))
    assert not users_known(found).any()  # the first snapshot is of day 21
    later = find_requests(world.events, from_ms=START + 21 * DAY, to_ms=START + 22 * DAY)
    [(_, found)] = read_features(candidate_rows(later, world.items), feast_reader(world.features, RELEASE))
    assert users_known(found).any()


def test_chunks_come_back_in_order_however_the_join_returned_them(world: World):
    requests = find_requests(world.events, from_ms=START + 30 * DAY, to_ms=START + 40 * DAY)
    rows = candidate_rows(requests, world.items)
    reader = feast_reader(world.features, RELEASE)
    whole = pa.concat_tables([part for _, part in read_features(rows, reader)])
    shuffled = [
        part
        for _, part in read_features(rows, lambda asked: reader(asked.sample(frac=1, random_state=1)), chunk_rows=37)
    ]
    names = [*USER_COLUMNS, *ITEM_COLUMNS, "embedding", "item_embedding"]
    assert pa.concat_tables(shuffled).select(names).to_pylist() == whole.select(names).to_pylist()


def test_a_join_that_loses_a_row_is_an_error(world: World):
    rows = candidate_rows(find_requests(world.events, from_ms=TRAINED, to_ms=TRAINED + 3 * DAY), world.items)
    reader = feast_reader(world.features, RELEASE)
    with pytest.raises(DataError, match="rows returned"):
        list(read_features(rows, lambda asked: reader(asked).slice(1)))


def test_inputs_are_counts_rates_and_the_product_of_the_vectors():
    inputs = existing_inputs(feature_table())
    assert inputs.values.shape[1] == len(USER_COLUMNS) + len(ITEM_COLUMNS)
    np.testing.assert_allclose(products_of(feature_table()), [[1, 0, 1], [0.36, 0.64, 1]], rtol=1e-6)
    assert inputs.values[0, 0] == pytest.approx(np.log(2))
    assert inputs.values[1, len(USER_COLUMNS) - 1] == 2.0  # the rate as it is


@pytest.mark.parametrize("absent", [None, [0.0, 0.0]])
def test_an_unknown_user_has_no_interactions_and_is_counted_as_such(absent):
    table = feature_table(embedding=pa.array([absent, [0.6, 0.8]]))
    assert users_known(table).tolist() == [False, True]
    assert not products_of(table)[0].any()


def test_when_no_user_is_known_the_layout_stays_the_same():
    table = feature_table(embedding=pa.array([None, None], pa.list_(pa.float32())))
    assert products_of(table).shape == products_of(feature_table()).shape
    assert not users_known(table).any()


def test_vectors_of_two_lengths_are_an_error():
    with pytest.raises(DataError, match="lengths"):
        vectors_of(feature_table(embedding=pa.array([[1.0], [0.6, 0.8]])))
    with pytest.raises(DataError, match="dimensions"):
        vectors_of(feature_table(embedding=pa.array([[1.0], [0.6]])))


def test_the_worlds_vectors_have_the_releases_dimension(world: World):
    rows = candidate_rows(find_requests(world.events, from_ms=START + 31 * DAY, to_ms=START + 40 * DAY), world.items)
    [(_, found)] = read_features(rows, feast_reader(world.features, RELEASE))
    assert [vectors.shape[1] for vectors in vectors_of(found)] == [DIMENSION, DIMENSION]


def _asking(count: int) -> list[Request]:
    return [Request(f"u{k}", k, ("i1",), frozenset({f"i{k + 2}"})) for k in range(count)]


def test_pieces_of_candidates_are_the_candidates() -> None:
    requests, catalogue = _asking(7), [f"i{k}" for k in range(12)]
    whole = candidate_rows(requests, catalogue, seed=3)
    parts = list(candidate_parts(requests, catalogue, rows_at_once=30, seed=3))
    assert [(part.start, part.stop) for part, _ in parts] == [(0, 2), (2, 4), (4, 6), (6, 7)]
    assert max(len(rows.item_ids) for _, rows in parts) <= 30
    frames = [frame_of(rows, first=part.start) for part, rows in parts]
    pd.testing.assert_frame_equal(pd.concat(frames, ignore_index=True), whole)
    assert len(whole) == 7 * 11 and whole["request"].is_monotonic_increasing


def test_no_request_gives_no_candidates() -> None:
    assert list(candidate_parts([], ["i1"], rows_at_once=1)) == []


@pytest.mark.parametrize(("most", "kept"), [(70, 7), (69, 6), (30, 3), (0, 1)])
def test_a_sample_keeps_whole_requests_within_the_rows_and_repeats_itself(most: int, kept: int) -> None:
    requests = _asking(7)
    found = sample_requests(requests, most_rows=most, rows_of=lambda request: 10, seed=5)
    assert len(found) == kept
    assert found == sorted(found, key=lambda request: request.time_ms)
    assert found == sample_requests(requests, most_rows=most, rows_of=lambda request: 10, seed=5)


def test_other_seeds_draw_other_samples() -> None:
    requests = _asking(100)
    drawn = [
        tuple(r.user_id for r in sample_requests(requests, most_rows=30, rows_of=lambda request: 1, seed=seed))
        for seed in range(5)
    ]
    assert len(set(drawn)) == 5
