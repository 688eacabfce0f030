"""The newest state that this process wrote or read, of a bounded number of users.

A stale entry costs one refused write and a reload, never an update: the store compares revisions. Entries have an end,
because a user whose row was removed for good (`spoor forget --expire`) begins at revision 1 again: an entry from before
the forgetting could meet its own revision a second time, if it were kept for as long as it takes until the row goes.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import NamedTuple

from spoor.store.rows import StoredUser

MAX_AGE_SECONDS = 3600.0  # far below the shortest time that a forgotten user's marker stays (batch/forget/expire.py)


class _Entry(NamedTuple):
    user: StoredUser
    partition: int | None
    since: float  # by the cache's clock


class HistoryCache:
    """Least recently used users go first. Threads may share it. `clock`: seconds, going on while the machine sleeps."""

    def __init__(self, max_users: int, *, clock: Callable[[], float] = time.time) -> None:
        self.max_users = max_users
        self._clock = clock
        self._users: OrderedDict[str, _Entry] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._users)

    def get(self, user_id: str) -> StoredUser | None:
        with self._lock:
            entry = self._users.get(user_id)
            if entry is None:
                return None
            if self._clock() - entry.since > MAX_AGE_SECONDS:
                del self._users[user_id]
                return None
            self._users.move_to_end(user_id)
            return entry.user

    def put(self, user_id: str, user: StoredUser, *, partition: int | None = None) -> None:
        """`partition`: of the user's events, so that the entry can go when the partition goes."""
        with self._lock:
            self._users[user_id] = _Entry(user, partition, self._clock())
            self._users.move_to_end(user_id)
            while len(self._users) > self.max_users:
                self._users.popitem(last=False)

    def drop(self, user_id: str) -> None:
        with self._lock:
            self._users.pop(user_id, None)

    def drop_partition(self, partition: int) -> None:
        """Forgets the users of a partition that another worker now has."""
        with self._lock:
            for user_id in [user_id for user_id, entry in self._users.items() if entry.partition == partition]:
                del self._users[user_id]

    def clear(self) -> None:
        with self._lock:
            self._users.clear()
