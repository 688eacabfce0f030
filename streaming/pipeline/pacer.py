"""The floor between two encodes of one user: who has to wait, and for whom it is over.

Only the embedding waits; the history is written with every batch. Who waits is remembered in memory alone: a worker
that is killed leaves these embeddings behind their histories until the user's next event, a sweep or a repair.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt


class EncodePacer:
    """`seconds`: between two encodes of a user; 0 makes nobody wait. `clock`: seconds, monotonic. Holds the users that
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
        """bool[U]: who was encoded less than the floor ago."""
        self._forget_old()
        return np.fromiter((user in self._encoded_at for user in users), bool, count=len(users))

    def encoded(self, users: Iterable[str]) -> None:
        """These users were encoded now, and wait no more."""
        now = self._clock()
        for user in users:
            self._waiting.pop(user, None)
            if self._seconds:
                self._encoded_at[user] = now
                self._encoded_at.move_to_end(user)

    def wait(self, users: Mapping[str, int]) -> None:
        """User → partition: whose embedding is behind the history, because it was too soon."""
        self._waiting |= users

    def due(self) -> dict[str, int]:
        """User → partition: who waits, and needs to no longer."""
        self._forget_old()
        return {user: partition for user, partition in self._waiting.items() if user not in self._encoded_at}

    def end(self) -> None:
        """From now on nobody waits, and who waited is due."""
        self._seconds = 0.0
        self._encoded_at.clear()

    def _forget_old(self) -> None:
        limit = self._clock() - self._seconds
        while self._encoded_at and next(iter(self._encoded_at.values())) <= limit:
            self._encoded_at.popitem(last=False)
