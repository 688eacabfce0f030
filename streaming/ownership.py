"""Which user came from which partition, so that cached histories leave with their partition."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence


class Ownership:
    """The partition of the newest `max_users` users seen. A user whose producers use several keys may come from
    several partitions: the newest counts, and the guarded write corrects a cache that is behind."""

    def __init__(self, max_users: int) -> None:
        self._max_users = max_users
        self._partition_of: OrderedDict[str, int] = OrderedDict()

    def note(self, user_ids: Sequence[str], partitions: Sequence[int]) -> None:
        for user, partition in zip(user_ids, partitions, strict=True):
            self._partition_of[user] = partition
            self._partition_of.move_to_end(user)
        while len(self._partition_of) > self._max_users:
            self._partition_of.popitem(last=False)

    def keep_only(self, partitions: Collection[int]) -> list[str]:
        """The users of all other partitions, which are forgotten here."""
        gone = [user for user, partition in self._partition_of.items() if partition not in partitions]
        for user in gone:
            del self._partition_of[user]
        return gone
