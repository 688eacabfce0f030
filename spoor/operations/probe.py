"""A sample of the users online and their histories: what two releases are compared on."""

from __future__ import annotations

import heapq

import numpy as np

from spoor.activity.hashing import hash_items
from spoor.activity.history import Histories
from spoor.activity.packing import unpack_readable
from spoor.store.online import OnlineStore

_CHUNK_USERS = 10_000


def sample_users(online: OnlineStore, count: int) -> list[str]:
    """The `count` users whose ids have the smallest hashes, or all if there are fewer: a random sample that is the same
    each time. One pass over the store's users; memory holds `count` of them."""
    chosen = set[tuple[int, str]]()
    for chunk in online.user_chunks(_CHUNK_USERS):
        chosen = set(heapq.nsmallest(count, chosen.union(zip(hash_items(chunk).tolist(), chunk, strict=True))))
    return [user for _, user in sorted(chosen)]


def stored_histories(online: OnlineStore, user_ids: list[str]) -> Histories:
    """Of the users who have events that can be read."""
    histories = unpack_readable([user.history for user in online.read(user_ids, [])]).histories
    return histories.take(np.flatnonzero(histories.lengths))
