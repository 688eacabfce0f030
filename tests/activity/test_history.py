"""merge is a semilattice: whatever the cutting, order or repetition of delivery, the history is the same."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from spoor.activity.events import Event, events_table
from spoor.activity.hashing import hash_item, hash_name
from spoor.activity.history import (
    EVENT_DTYPE,
    Histories,
    concat,
    equal_rows,
    group_events,
    history_values,
    merge,
    not_among,
    same_events,
)
from spoor.activity.packing import unpack

L = 5
NAMES = [prefix << 48 | rest for prefix in (0, 1, 65535) for rest in (2**16, 2**47)]
OLD = [0, 1, 65535]
times, items = st.integers(0, 12), st.sampled_from([0, 1, 2**63, 2**64 - 1])
event = st.tuples(times, items, st.sampled_from(NAMES), st.sampled_from(NAMES)) | st.tuples(
    times, items, st.sampled_from(OLD), st.sampled_from(OLD)
)
events = st.lists(event, max_size=30)
keyed = st.lists(st.tuples(st.sampled_from(["a", "b", "ü"]), event), max_size=40)


def model(*sets, newest=L):
    """The ten-line model: newest L of the union by the total order, without old events that others replace."""
    union = set().union(*map(set, sets))
    replaced = {(t, item, a >> 48, s >> 48) for t, item, a, s in union if not is_old((t, item, a, s))}
    return sorted(event for event in union if not (is_old(event) and event in replaced))[-newest:]


def is_old(event):
    return event[2] < 2**16 and event[3] < 2**16


def history(events):
    return Histories.of([np.array(model(events), EVENT_DTYPE)])


def listed(histories, user=0):
    return [tuple(int(x) for x in row) for row in histories[user]]


@given(events, events)
def test_merge_is_the_newest_of_the_union(a, b):
    assert listed(merge(history(a), history(b), max_events=L)) == model(a, b)


@given(events, events, events)
def test_merge_is_associative_commutative_and_idempotent(a, b, c):
    a, b, c = history(a), history(b), history(c)

    def m(x, y):
        return merge(x, y, max_events=L)

    assert listed(m(m(a, b), c)) == listed(m(a, m(b, c)))
    assert listed(m(a, b)) == listed(m(b, a))
    assert listed(m(a, a)) == listed(a)


@given(keyed, st.randoms(use_true_random=False), st.integers(1, 7))
def test_any_order_and_any_cutting_into_batches_ends_the_same(rows, random, size):
    expected = {user: model([e for u, e in rows if u == user]) for user, _ in rows}
    delivered = rows + random.sample(rows, len(rows) // 2)  # redelivery
    random.shuffle(delivered)
    state: dict[str, Histories] = {}
    for start in range(0, len(delivered), size):
        batch = delivered[start : start + size]
        users, new = group_events([u for u, _ in batch], np.array([e for _, e in batch], EVENT_DTYPE), max_events=L)
        old = concat([state.get(user, Histories.empty(1)) for user in users])
        merged = merge(old, new, max_events=L)
        state |= {user: merged.take([i]) for i, user in enumerate(users)}
    assert {user: listed(h) for user, h in state.items()} == expected


@given(events)
def test_what_is_merged_with_its_newer_self_equals_what_was_never_old(rows):
    """A history whose events all come again, as in a repair, ends as if no version had kept 16 bits of a name."""
    new = [row for row in rows if not is_old(row)]
    old = [(t, item, a >> 48, s >> 48) for t, item, a, s in model(new)]
    merged = merge(history(old), history(new), max_events=L)
    assert listed(merged) == model(new)
    assert not merged.hold_old_events().any()


@given(st.lists(events, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_same_events_sees_through_the_version_of_names(per_user, random):
    known = concat([history([row for row in rows if not is_old(row)]) for rows in per_user])
    older = [
        [
            (t, item, a >> 48, s >> 48) if random.random() < 0.5 else (t, item, a, s)
            for t, item, a, s in known[u].tolist()
        ]
        for u in range(known.count)
    ]
    stored = concat([history(rows) for rows in older])
    whole = stored.lengths == known.lengths  # else two names have become one
    assert same_events(stored, known).tolist() == whole.tolist()
    assert stored.hold_old_events().tolist() == [any(map(is_old, model(rows))) for rows in older]
    shorter = concat([history(rows[1:]) for rows in older])
    assert same_events(shorter, known).tolist() == [not rows for rows in older]
    for user in range(known.count):
        assert len(not_among(stored[user], known[user])) == 0
        assert not_among(known[user], shorter[user]).tolist() == sorted(
            set(model(listed(known, user), listed(shorter, user))) - set(listed(shorter, user))
        )


OLD_ANN = bytes.fromhex(
    "535048011800010103000000030000005faa3232000000007213bb7ac77e9a43c77ebb7a0068e5cf8b810068e5cf8b810568e5cf8b81"
    "38266c65f5aa824f38266c65f5aa824f2dbe0b088993b648000201"
)
OLD_BOB = bytes.fromhex(
    "53504801200001010100000001000000539d291cd2052e1bff67e5cf8b010000c77e9a430968e5cf8b81ef51ff441dc3537900"
)


def test_a_history_of_the_last_version_does_not_double_when_its_events_come_again():
    start = 1_700_000_000_000
    seen = [
        Event("ann", "i1", "view", "home", start),
        Event("ann", "i1", "like", "home", start),
        Event("ann", "ü", "view", "page-57", start + 5),
        Event("bob", "i2", "view", "page-57", start + 9),
        Event("bob", "i2", "view", "page-268", start + 9),  # the last version made one event of these two
    ]
    stored = unpack([OLD_ANN, OLD_BOB])
    assert stored.lengths.tolist() == [3, 1] and stored.hold_old_events().all()
    users, again = group_events([e.user_id for e in seen], history_values(events_table(seen)), max_events=9)
    assert users == ["ann", "bob"] and again.lengths.tolist() == [3, 2]
    assert same_events(stored, again).tolist() == [True, False]
    merged = merge(stored, again, max_events=9)
    assert equal_rows(merged, again).all()
    one = merge(stored, again.take([0, 1]).oldest(np.array([1, 0])), max_events=9)
    assert one.lengths.tolist() == [3, 1] and one.hold_old_events().all()


def test_two_surfaces_that_shared_16_bits_are_two_events():
    both = [Event("u", "i", "view", surface, 7) for surface in ("page-57", "page-268")]
    _, histories = group_events(["u", "u"], history_values(events_table(both)), max_events=9)
    assert histories.lengths.tolist() == [2]


@given(st.lists(events, max_size=6), st.lists(events, max_size=6))
def test_equal_rows_compares_user_by_user(a, b):
    users = min(len(a), len(b))
    left = concat([history(x) for x in a[:users]])
    right = concat([history(x) for x in b[:users]])
    assert equal_rows(left, right).tolist() == [model(x) == model(y) for x, y in zip(a, b, strict=False)]


@given(st.lists(events, max_size=6), st.data())
def test_take_newest_and_oldest_agree_with_lists(per_user, data):
    histories = concat([history(x) for x in per_user])
    chosen = data.draw(st.lists(st.integers(0, len(per_user) - 1), max_size=8)) if per_user else []
    taken = histories.take(chosen)
    assert [listed(taken, i) for i in range(taken.count)] == [model(per_user[i]) for i in chosen]
    newest = histories.newest(2)
    assert [listed(newest, i) for i in range(newest.count)] == [model(x)[-2:] for x in per_user]
    before = histories.oldest(np.array([sum(e[0] < 6 for e in model(x)) for x in per_user], np.int64))
    assert [listed(before, i) for i in range(before.count)] == [[e for e in model(x) if e[0] < 6] for x in per_user]
    assert histories.last_times().tolist() == [model(x)[-1][0] if x else 0 for x in per_user]


def test_no_users_and_no_events_are_fine():
    none = Histories.empty(0)
    assert merge(none, none, max_events=L).count == 0
    assert group_events([], np.empty(0, EVENT_DTYPE), max_events=L)[0] == []
    three = Histories.empty(3)
    assert merge(three, three, max_events=L).lengths.tolist() == [0, 0, 0]
    assert three.newest(1).count == three.oldest(np.zeros(3, np.int64)).count == three.take([2, 0]).count + 1 == 3


def test_values_carry_the_hashes_of_the_names():
    table = events_table([Event("u", "i1", "view", "home", 7), Event("u", "i2", "view", "shop", 8)])
    values = history_values(table)
    assert values["item"].tolist() == [hash_item("i1"), hash_item("i2")]
    assert values["action"].tolist() == [hash_name("view")] * 2
    assert values["surface"].tolist() == [hash_name("home"), hash_name("shop")]
    assert values["timestamp"].tolist() == [7, 8]
    assert len(history_values(events_table([]))) == 0


def test_oldest_takes_the_first_events_of_each_user_and_repeats_counts_items_met_again() -> None:
    user_ids, rows = list("aaabbc"), np.zeros(6, EVENT_DTYPE)
    rows["timestamp"] = range(6)
    rows["item"] = [7, 8, 7, 7, 9, 9]
    _, histories = group_events(user_ids, rows, max_events=9)
    oldest = histories.oldest(np.array([2, 5, 0]))
    assert oldest.values["timestamp"].tolist() == [0, 1, 3, 4]
    assert oldest.offsets.tolist() == [0, 2, 4, 4]
    assert histories.repeats() == 1
    assert Histories.empty(2).repeats() == 0
