"""The newest state that this process wrote or read, of a bounded number of users.

A stale entry costs one refused write and a reload, never an update: the store compares revisions.
"""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

from store.rows import StoredUser


class HistoryCache:
    """Least recently used users go first. Threads may share it."""

    def __init__(self, max_users: int) -> None:
        self.max_users = max_users
        self._users: OrderedDict[str, tuple[StoredUser, int | None]] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._users)

    def get(self, user_id: str) -> StoredUser | None:
        with self._lock:
            entry = self._users.get(user_id)
            if entry is None:
                return None
            self._users.move_to_end(user_id)
            return entry[0]

    def put(self, user_id: str, user: StoredUser, *, partition: int | None = None) -> None:
        """`partition`: of the user's events, so that the entry can go when the partition goes."""
        with self._lock:
            self._users[user_id] = (user, partition)
            self._users.move_to_end(user_id)
            while len(self._users) > self.max_users:
                self._users.popitem(last=False)

    def drop(self, user_id: str) -> None:
        with self._lock:
            self._users.pop(user_id, None)

    def drop_partition(self, partition: int) -> None:
        """Forgets the users of a partition that another worker now has."""
        with self._lock:
            for user_id in [user_id for user_id, (_, tag) in self._users.items() if tag == partition]:
                del self._users[user_id]

    def clear(self) -> None:
        with self._lock:
            self._users.clear()
