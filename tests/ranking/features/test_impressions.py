import numpy as np
import pyarrow as pa
import pytest

from spoor.activity.events import Event, events_table
from spoor.base.errors import DataError, UsageError
from spoor.ranking.features.impressions import DAY_MS, find_impressions, window_times
from spoor.ranking.settings import ImpressionSettings

MINUTE, HOUR = 60_000, 3_600_000
SETTINGS = ImpressionSettings(positive=("like", "save"), shown=("view",), max_candidates=2)


def events_of(*rows: tuple[str, str, str, int]) -> pa.Table:
    return events_table([Event(user, item, action, "app", time) for user, item, action, time in rows])


def test_an_action_counts_for_the_newest_impression_of_its_item():
    table = events_of(
        ("u", "a", "view", HOUR),
        ("u", "a", "like", HOUR + MINUTE),
        ("u", "b", "view", HOUR + 2 * MINUTE),
        ("u", "a", "view", 5 * HOUR),
        ("u", "a", "save", 5 * HOUR + MINUTE),
        ("u", "b", "save", 30 * HOUR),  # more than a day after b was shown
        ("u", "c", "like", 31 * HOUR),  # never shown
        ("v", "a", "like", HOUR),  # shown to somebody else
    )
    found = find_impressions(table, SETTINGS, from_ms=0, to_ms=100 * HOUR)
    assert found.tasks == ("engaged", "like", "save")
    assert found.item_ids == ("a", "b", "a")
    assert found.labels.tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 1]]
    assert found.user_ids == ("u", "u")
    assert found.times_ms.tolist() == [HOUR - 1, 5 * HOUR - 1]
    assert found.offsets.tolist() == [0, 2, 3]


def test_an_action_counts_for_an_impression_at_its_own_time_in_whatever_order_they_were_written():
    shown, liked = ("u", "a", "view", HOUR), ("u", "a", "like", HOUR)
    for rows in ((shown, liked), (liked, shown)):
        found = find_impressions(events_of(*rows), SETTINGS, from_ms=0, to_ms=2 * HOUR)
        assert found.labels.tolist() == [[1, 1, 0]] and found.times_ms.tolist() == [HOUR - 1]


def test_what_happens_after_the_window_is_not_known_in_it():
    table = events_of(("u", "a", "view", HOUR), ("u", "a", "like", 3 * HOUR))
    assert find_impressions(table, SETTINGS, from_ms=0, to_ms=2 * HOUR).labels[0].tolist() == [0, 0, 0]
    assert find_impressions(table, SETTINGS, from_ms=0, to_ms=4 * HOUR).labels[0].tolist() == [1, 1, 0]


def test_a_request_ends_when_it_is_full_but_never_between_events_of_one_time():
    rows = [("u", item, "view", HOUR + at) for item, at in [("a", 0), ("b", 1), ("c", 2), ("d", 3), ("e", 3), ("f", 3)]]
    found = find_impressions(events_of(*rows), SETTINGS, from_ms=0, to_ms=9 * HOUR)
    assert found.offsets.tolist() == [0, 2, 4, 6]
    one_time = [("u", item, "view", HOUR) for item in "abcdef"]
    assert find_impressions(events_of(*one_time), SETTINGS, from_ms=0, to_ms=9 * HOUR).requests == 1


def test_a_visit_that_begins_with_another_action_is_asked_before_it():
    rows = [("u", "a", "view", HOUR), ("u", "a", "like", 9 * HOUR), ("u", "b", "view", 9 * HOUR + MINUTE)]
    assert find_impressions(events_of(*rows), SETTINGS, from_ms=0, to_ms=99 * HOUR).times_ms.tolist() == [
        HOUR - 1,
        9 * HOUR - 1,
    ]


def test_an_item_is_one_candidate_of_a_request():
    table = events_of(("u", "a", "view", HOUR), ("u", "a", "view", HOUR + 1), ("u", "b", "view", HOUR + 2))
    found = find_impressions(table, SETTINGS, from_ms=0, to_ms=2 * HOUR)
    assert found.item_ids == ("a", "b") and found.candidates_per_history == 2


def test_every_action_may_show_an_item_and_be_what_is_predicted():
    settings = ImpressionSettings(positive=("rate_4", "rate_5"))
    table = events_of(("u", "a", "rate_5", HOUR), ("u", "b", "rate_1", HOUR + 1), ("u", "c", "rate_4", HOUR + 2))
    assert find_impressions(table, settings, from_ms=0, to_ms=2 * HOUR).labels[:, 0].tolist() == [1, 0, 1]


def test_age_is_counted_from_the_items_first_event_of_anybody():
    table = events_of(("v", "a", "view", HOUR), ("u", "a", "view", HOUR + 3 * DAY_MS + 1), ("u", "b", "view", HOUR))
    found = find_impressions(table, SETTINGS, from_ms=0, to_ms=9 * DAY_MS)
    ages = dict(zip(zip(found.row_requests.tolist(), found.item_ids, strict=True), found.ages_days, strict=True))
    assert ages == {(0, "b"): 0.0, (1, "a"): 0.0, (2, "a"): pytest.approx(3.0)}
    later = find_impressions(table, SETTINGS, from_ms=DAY_MS, to_ms=9 * DAY_MS)
    assert later.ages_days.tolist() == [pytest.approx(3.0)]  # events before the window tell it


def test_labels_and_times_do_not_feel_the_future():
    early = [("u", f"i{k}", "view", HOUR * (k + 1)) for k in range(9)]
    late = [("u", "i0", "like", 20 * HOUR), ("u", "i8", "view", 21 * HOUR)]
    alone = find_impressions(events_of(*early), SETTINGS, from_ms=0, to_ms=10 * HOUR)
    both = find_impressions(events_of(*early, *late), SETTINGS, from_ms=0, to_ms=10 * HOUR)
    assert alone.item_ids == both.item_ids
    np.testing.assert_array_equal(alone.labels, both.labels)
    np.testing.assert_array_equal(alone.ages_days, both.ages_days)


def test_taking_requests_keeps_their_rows():
    rows = [("u", f"i{k}", "view", HOUR * (k // 2 + 1) + k) for k in range(8)]
    found = find_impressions(events_of(*rows), SETTINGS, from_ms=0, to_ms=10 * HOUR)
    some = found.take(np.array([3, 0]))
    assert some.item_ids == ("i6", "i7", "i0", "i1")
    assert found.between(2 * HOUR, 3 * HOUR).item_ids == ("i2", "i3")
    assert list(found.frame()["item_id"]) == [f"i{k}" for k in range(8)]


def test_windows_follow_one_another_and_start_when_ages_are_known():
    table = events_of(*((f"u{k}", "a", "view", k * DAY_MS) for k in range(100)))
    assert window_times(table) == (60 * DAY_MS, 80 * DAY_MS, 99 * DAY_MS + 1)
    with pytest.raises(DataError, match="expected 28"):
        window_times(table.slice(0, 40))
    with pytest.raises(DataError, match="no events"):
        window_times(table.slice(0, 0))


def test_what_cannot_be_is_refused():
    with pytest.raises(UsageError, match="positive"):
        ImpressionSettings(positive=())
    with pytest.raises(UsageError, match="name like twice"):
        ImpressionSettings(positive=("like", "save", "like"))
    with pytest.raises(UsageError, match="name engaged twice"):
        ImpressionSettings(positive=("engaged",))
    with pytest.raises(DataError, match="no impression"):
        find_impressions(events_of(("u", "a", "like", 5)), SETTINGS, from_ms=0, to_ms=9)


def test_a_sample_keeps_whole_requests_within_the_rows_oldest_first():
    rows = [(f"u{k}", item, "view", HOUR + k) for k in range(9) for item in "ab"]
    found = find_impressions(events_of(*rows), SETTINGS, from_ms=0, to_ms=9 * HOUR)
    assert (found.requests, len(found.item_ids)) == (9, 18)
    assert found.sample(18, seed=0) is found
    sampled = found.sample(7, seed=0)
    assert (sampled.requests, len(sampled.item_ids)) == (3, 6)
    assert sampled.times_ms.tolist() == sorted(sampled.times_ms.tolist())
    assert sampled.user_ids == found.sample(7, seed=0).user_ids
    assert len({found.sample(7, seed=seed).user_ids for seed in range(5)}) > 1
