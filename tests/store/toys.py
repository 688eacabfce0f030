"""A deterministic encoder, and events for it: the tests need vectors that depend on the history, not a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from spoor.activity.hashing import hash_items, hash_names
from spoor.activity.history import EVENT_DTYPE, Histories, group_events

DIMENSION = 8
START_MS = 1_700_000_000_123


class ToyEncoder:
    """The normalised sum of one fixed random vector per item."""

    def __init__(self, release: str = "base-1", *, dimension: int = DIMENSION, trained_through_ms: int = 0) -> None:
        self.release = release
        self.dimension = dimension
        self.max_events = 64
        self.trained_through_ms = trained_through_ms
        self.calls = 0  # users encoded so far

    def encode(self, histories: Histories) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        self.calls += histories.count
        sums = [self._sum(histories[user]["item"][-self.max_events :]) for user in range(histories.count)]
        return np.array(sums, np.float32).reshape(-1, self.dimension), np.minimum(histories.lengths, self.max_events)

    def _sum(self, items: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
        vectors = [np.random.default_rng(int(item)).normal(size=self.dimension) for item in items]
        total = np.sum(vectors, axis=0) if vectors else np.zeros(self.dimension)
        return total / (np.linalg.norm(total) or 1)


def events_of(*events: tuple[str, str, int]) -> tuple[list[str], Histories]:
    """(user, item, ms after START_MS) → the users in order of appearance, their events."""
    values = np.empty(len(events), EVENT_DTYPE)
    values["timestamp"] = [START_MS + time for _, _, time in events]
    values["item"] = hash_items([item for _, item, _ in events])
    values["action"], values["surface"] = hash_names(["view"])[0], hash_names(["home"])[0]
    return group_events([user for user, _, _ in events], values, max_events=10_000)


def as_of(users: Sequence[str], time: int = 0) -> npt.NDArray[np.int64]:
    return np.full(len(users), START_MS + time, np.int64)
