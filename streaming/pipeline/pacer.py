"""Rate limit: the minimum time between two encodes of a user.

Only the embedding waits; the history is written with every batch. The waiting users are in memory alone: a worker that
is killed leaves their embeddings behind their histories until the user's next event, a sweep or a repair.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from spoor.store.writer import UpdateResult


class EncodePacer:
    """`seconds`: between two encodes of a user; with 0 no user waits. `clock`: seconds, monotonic. Holds the users that
    were encoded within the last `seconds`, and which of them wait."""

    def __init__(self, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._encoded_at: OrderedDict[str, float] = OrderedDict()  # the longest ago first
        self._waiting: dict[str, int] = {}  # user → partition of its events

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def too_soon(self, users: Sequence[str]) -> npt.NDArray[np.bool_]:
        """bool[U]: whether the user was encoded less than `seconds` ago."""
        self._forget_old()
        return np.fromiter((user in self._encoded_at for user in users), bool, count=len(users))

    def written(self, result: UpdateResult, partitions: Sequence[int], too_soon: npt.NDArray[np.bool_]) -> Set[str]:
        """Users who were `too_soon` and whose embedding is now behind the history wait; the limit of the others that
        were encoded begins. `partitions`: of each user. Returns the users of this update who wait."""
        if not (self._seconds or self._waiting):
            return frozenset()
        rows = list(zip(result.users, partitions, too_soon, result.changed, strict=True))
        behind = set().union(*result.behind.values()) if too_soon.any() else ()
        waiting = {user: partition for user, partition, soon, _ in rows if soon and user in behind}
        self.wait(waiting)
        self.encoded(user for user, _, soon, changed in rows if not soon and (changed or user in self._waiting))
        return waiting.keys()

    def encoded(self, users: Iterable[str]) -> None:
        """These users were encoded now, and wait no longer."""
        now = self._clock()
        for user in users:
            self._waiting.pop(user, None)
            if self._seconds:
                self._encoded_at[user] = now
                self._encoded_at.move_to_end(user)

    def wait(self, users: Mapping[str, int]) -> None:
        """User → partition: their embeddings are behind their histories, because it was too soon."""
        self._waiting |= users

    def due(self, most: int | None = None) -> dict[str, int]:
        """User → partition: users whose wait is over, at most so many."""
        self._forget_old()
        waited = (pair for pair in self._waiting.items() if pair[0] not in self._encoded_at)
        return dict(islice(waited, most))

    def end(self) -> None:
        """From now on no user waits, and those who waited are due."""
        self._seconds = 0.0
        self._encoded_at.clear()

    def _forget_old(self) -> None:
        limit = self._clock() - self._seconds
        while self._encoded_at and next(iter(self._encoded_at.values())) <= limit:
            self._encoded_at.popitem(last=False)
