import io

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.image import imread

from spoor.activity.events import Event, events_table
from spoor.demo.data import ITEM_SCHEMA
from spoor.demo.pictures import favourite_genres, freshness_histogram, principal_plane, user_map


def pixels(png: bytes) -> np.ndarray:
    return imread(io.BytesIO(png))


@pytest.mark.parametrize("delays", [[], [12.0], [5.0] * 40, [*range(1, 2000), 60_000]])
def test_a_histogram_of_any_number_of_delays(delays):
    picture = pixels(freshness_histogram(np.array(delays, np.float64)))
    assert picture.shape[0] > 300 and picture.shape[1] > 600
    assert picture.std() > 0.01


@pytest.mark.parametrize("users", [0, 1, 2, 300])
def test_a_map_of_any_number_of_users(users):
    vectors = np.random.default_rng(0).normal(size=(users, 8)).astype(np.float32)
    labels = [None if k % 5 == 0 else f"genre {k % 11}" for k in range(users)]
    assert pixels(user_map(vectors, labels)).shape[0] > 300


def test_a_label_has_a_colour_of_its_own():
    vectors = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    one, two = user_map(vectors, ["a"] * 50), user_map(vectors, ["a"] * 25 + ["b"] * 25)
    colours = [len(np.unique(pixels(png)[..., :3].round(1).reshape(-1, 3), axis=0)) for png in (one, two)]
    assert colours[1] > colours[0]


def test_the_plane_holds_the_directions_of_most_variance():
    chance = np.random.default_rng(1)
    vectors = (chance.normal(size=(200, 5)) * [0.1, 9.0, 0.1, 3.0, 0.1]).astype(np.float32)
    plane, shares = principal_plane(vectors)
    assert abs(np.corrcoef(plane[:, 0], vectors[:, 1])[0, 1]) > 0.99
    assert abs(np.corrcoef(plane[:, 1], vectors[:, 3])[0, 1]) > 0.99
    assert shares[0] > shares[1] > 0 and sum(shares) > 0.95
    np.testing.assert_allclose(principal_plane(vectors + 7)[0], plane, atol=1e-3)


def test_a_favourite_genre_is_what_a_user_likes_beyond_the_average():
    items = pa.table(
        [["d", "w", "dw", "x"], ["D", "W", "DW", "X"], [["Drama"], ["War"], ["Drama", "War"], []]], schema=ITEM_SCHEMA
    )
    liked = [("all", "d"), ("u", "d"), ("u", "d"), ("u", "w"), ("v", "w"), ("v", "dw"), ("y", "x")]
    events = events_table([Event(user, item, "like", "s", k) for k, (user, item) in enumerate(liked)])
    # Everyone: 4 of 7 Drama. u has 2 of 3, v 1 of 3; y liked nothing of known genre.
    assert favourite_genres(events, items) == {"all": "Drama", "u": "Drama", "v": "War"}
    assert favourite_genres(events, items, positive_actions=["buy"]) == {}
