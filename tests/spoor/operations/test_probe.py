"""The sample of users that two releases are compared on."""

from __future__ import annotations

import numpy as np

from spoor.activity.history import Histories
from spoor.activity.packing import unpack
from spoor.activity.settings import HistorySettings
from spoor.operations.probe import sample_users, stored_histories
from spoor.store.writer import GuardedWriter
from tests.store.toys import ToyEncoder, as_of, events_of


def test_a_sample_is_a_part_of_the_users_and_the_same_each_time(online, monkeypatch):
    users, events = events_of(*((f"u{n}", "i1", n) for n in range(50)))
    GuardedWriter(online, [ToyEncoder()], history=HistorySettings()).update(users, events, as_of_ms=as_of(users))
    some = sample_users(online, 20)
    assert len(set(some)) == 20 and set(some) < set(users)
    monkeypatch.setattr("spoor.operations.probe._CHUNK_USERS", 7)
    assert sample_users(online, 20) == some
    assert set(sample_users(online, 10)) == set(some[:10])
    assert set(sample_users(online, 99)) == set(users)


def test_histories_are_those_stored_and_who_has_none_is_left_out(online):
    assert sample_users(online, 5) == [] and stored_histories(online, []).count == 0
    users, events = events_of(("ann", "i1", 0), ("ann", "i2", 1), ("bob", "i3", 0))
    GuardedWriter(online, [ToyEncoder()], history=HistorySettings()).update(users, events, as_of_ms=as_of(users))
    forgetting = GuardedWriter(online, [ToyEncoder()], history=HistorySettings())
    forgetting.update(["eve"], Histories.empty(1), as_of_ms=as_of(["eve"]), forget_through=np.array([2**45]))
    found = stored_histories(online, ["bob", "nobody", "eve", "ann"])
    assert found.lengths.tolist() == [1, 2]
    assert found[1].tolist() == unpack([online.read(["ann"], [])[0].history])[0].tolist()
