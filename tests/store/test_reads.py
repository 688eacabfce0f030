"""The read helper's default for users without an embedding."""

from __future__ import annotations

import dataclasses

import numpy as np

from spoor.activity.settings import HistorySettings
from spoor.store.reads import user_vectors
from spoor.store.writer import GuardedWriter
from tests.store.toys import DIMENSION, ToyEncoder, as_of, events_of


def test_a_user_without_embedding_gets_zeros_and_a_flag(online, features):
    users, events = events_of(("ann", "i1", 0))
    GuardedWriter(online, [ToyEncoder()], history=HistorySettings()).update(users, events, as_of_ms=as_of(users))
    for source in (features, online):
        vectors, known = user_vectors(source, "base-1", ["nobody", "ann"])
        assert known.tolist() == [False, True] and vectors.dtype == np.float32
        assert vectors.shape == (2, DIMENSION) and not vectors[0].any()
        np.testing.assert_allclose(vectors[1], ToyEncoder().encode(events)[0][0], atol=1e-6)


def test_an_embedding_of_another_length_is_none(online, features):
    """As Feast would store it from anybody: it checks no length."""
    users, events = events_of(("ann", "i1", 0))
    GuardedWriter(online, [ToyEncoder()], history=HistorySettings()).update(users, events, as_of_ms=as_of(users))
    (row,) = online.read_embeddings("base-1", ["ann"])
    view = online._embedding_view_row(dataclasses.replace(row, embedding=row.embedding[:-1]))
    for embedding in (view.values["embedding"], b"\xff\xff\xff"):
        view.values["embedding"] = embedding
        online._guard.put(online.feast.config, [(online._keys(["ann"])[0], view)])
        vectors, known = user_vectors(features, "base-1", ["ann"])
        assert known.tolist() == [False] and not vectors.any()


def test_no_users_give_no_vectors(online):
    vectors, known = user_vectors(online, "base-1", [])
    assert vectors.shape == (0, DIMENSION) and known.shape == (0,)
