"""Order and times of events whose times are coarse."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from spoor.activity.hashing import user_hashes
from spoor.activity.history import EVENT_DTYPE
from spoor.activity.sources.ties import raise_times, resolution_ms, separate_times, shuffle_keys, spread_times

DAY = 86_400_000


def test_the_resolution_is_the_coarsest_unit_that_divides_every_time() -> None:
    for times, expected in (
        ([], DAY),
        ([0, 3 * DAY], DAY),
        ([DAY, 120_000], 60_000),
        ([DAY, 61_000], 1_000),
        ([DAY, 1], 1),
    ):
        assert resolution_ms(np.array(times, np.int64)) == expected


def test_places_win_over_times_and_touch_only_what_contradicts_them() -> None:
    users = np.array([0, 1, 0, 0, 1, 0])
    times = np.array([50, 9, 20, 60, 8, 55])
    places = np.array([0, 1, 1, 2, 0, 3])  # user 0: 50, 20, 60, 55; user 1: 8, 9
    assert raise_times(users, times, places).tolist() == [50, 9, 50, 60, 8, 60]


def test_equal_times_share_the_resolution_and_a_crowd_pushes_on() -> None:
    users = np.array([0, 0, 0, 0, 1, 1, 1])
    times = np.array([1000, 1000, 1000, 2000, 5, 5, 6])
    spread = spread_times(users, times, resolution=1000)
    assert spread[:4].tolist() == [1000, 1333, 1666, 2000]
    assert spread_times(users[4:], times[4:], resolution=1).tolist() == [5, 6, 7]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=60), st.sampled_from([1, 7, 1000]))
def test_spread_times_rise_strictly_and_never_fall_below_the_original(
    events: list[tuple[int, int]], resolution: int
) -> None:
    ordered = np.array(sorted(events), np.int64).reshape(-1, 2)
    users, times = ordered[:, 0], ordered[:, 1] * resolution
    spread = spread_times(users, times, resolution=resolution)
    assert np.all(spread >= times)
    same_user = np.diff(users) == 0
    assert np.all(np.diff(spread)[same_user] > 0)
    if not len(times) or np.unique(ordered, axis=0, return_counts=True)[1].max() <= resolution:
        assert np.array_equal(spread // resolution, times // resolution)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=60))
def test_separate_times_rise_by_what_came_before_alone(events: list[tuple[int, int]]) -> None:
    ordered = np.array(sorted(events), np.int64).reshape(-1, 2)
    users, times = ordered[:, 0], ordered[:, 1]
    slowly: list[int] = []
    for place, (user, time) in enumerate(sorted(events)):
        follows = place > 0 and users[place - 1] == user
        slowly.append(max(time, slowly[-1] + 1) if follows else time)
    assert separate_times(users, times).tolist() == slowly


def test_shuffle_keys_follow_the_event_and_the_seed_alone() -> None:
    rng = np.random.default_rng(0)
    values = np.empty(500, EVENT_DTYPE)
    for name in EVENT_DTYPE.names or ():
        values[name] = rng.integers(0, 1000, 500)
    hashes = user_hashes([f"u{n}" for n in range(500)])
    keys = shuffle_keys(hashes, values, seed=1)
    order = rng.permutation(500)
    assert np.array_equal(shuffle_keys(hashes[order], values[order], seed=1), keys[order])
    assert len(np.unique(keys)) == 500
    by_item = np.argsort(values["item"], kind="stable")
    assert abs(np.corrcoef(np.argsort(np.argsort(keys[by_item])), np.arange(500))[0, 1]) < 0.2
    assert np.mean(keys == shuffle_keys(hashes, values, seed=2)) == 0
    assert len(np.unique([shuffle_keys(hashes[:1], values[:1], seed=seed) for seed in (-1, 0, 1, 2**64 - 2)])) == 4
