"""A sample of users of the online store and their histories, on which two releases are compared."""

from __future__ import annotations

import heapq

import numpy as np

from spoor.activity.hashing import hash_items
from spoor.activity.history import Histories
from spoor.activity.packing import unpack_readable
from spoor.store.online import OnlineStore

_CHUNK_USERS = 10_000


def sample_users(online: OnlineStore, count: int) -> list[str]:
    """The `count` users with the smallest id hashes, or all if there are fewer: a reproducible random sample. One pass
    over the store's users; holds `count` of them and a chunk in memory."""
    chosen = set[tuple[int, str]]()
    for chunk in online.user_chunks(_CHUNK_USERS):
        chosen = set(heapq.nsmallest(count, chosen.union(zip(hash_items(chunk).tolist(), chunk, strict=True))))
    return [user for _, user in sorted(chosen)]


def stored_histories(online: OnlineStore, user_ids: list[str]) -> Histories:
    """Histories of the users that have readable events."""
    histories = unpack_readable([user.history for user in online.read(user_ids, [])]).histories
    return histories.take(np.flatnonzero(histories.lengths))
