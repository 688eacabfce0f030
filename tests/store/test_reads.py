"""The read helper's default for users without an embedding."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from activity.errors import DataError
from activity.settings import HistorySettings
from store.reads import user_vectors
from store.writer import GuardedWriter
from tests.store.toys import DIMENSION, ToyEncoder, as_of, events_of


def test_a_user_without_embedding_gets_zeros_and_a_flag(online, features):
    users, events = events_of(("ann", "i1", 0))
    GuardedWriter(online, [ToyEncoder()], history=HistorySettings()).update(users, events, as_of_ms=as_of(users))
    for source in (features, online):
        vectors, known = user_vectors(source, "base-1", ["nobody", "ann"])
        assert known.tolist() == [False, True] and vectors.dtype == np.float32
        assert vectors.shape == (2, DIMENSION) and not vectors[0].any()
        np.testing.assert_allclose(vectors[1], ToyEncoder().encode(events)[0][0], atol=1e-6)


def test_an_embedding_of_another_length_is_a_data_error(online, features):
    """As Feast would store it from anybody: it checks no length."""
    users, events = events_of(("ann", "i1", 0))
    GuardedWriter(online, [ToyEncoder()], history=HistorySettings()).update(users, events, as_of_ms=as_of(users))
    (row,) = online.read_embeddings("base-1", ["ann"])
    view = online._embedding_view_row(dataclasses.replace(row, embedding=row.embedding[:-1]))
    online._guard.put(online.feast.config, [(online._keys(["ann"])[0], view)])
    with pytest.raises(DataError, match=f"{DIMENSION - 1} floats as the embedding of user 'ann', expected {DIMENSION}"):
        user_vectors(features, "base-1", ["ann"])


def test_no_users_give_no_vectors(online):
    vectors, known = user_vectors(online, "base-1", [])
    assert vectors.shape == (0, DIMENSION) and known.shape == (0,)
