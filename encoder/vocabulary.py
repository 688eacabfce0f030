"""What a release knows: the items, actions and surfaces it was trained on, as hashes, each with a small number.

Numbers start at 1 in the order of the hashes; 0 is what the release does not know.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from activity.history import Histories
from encoder.hashing import vocabulary_index

Indexes = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Sorted and without duplicates: `items` uint64[V], `actions` uint16[A], `surfaces` uint16[S].
    `item_ids` holds the V raw ids in the order of `items`."""

    items: npt.NDArray[np.uint64]
    actions: npt.NDArray[np.uint16]
    surfaces: npt.NDArray[np.uint16]
    item_ids: tuple[str, ...]

    def item_indexes(self, item_hashes: npt.NDArray[np.uint64]) -> Indexes:
        """uint64[n] to int64[n] in [0, V]."""
        return vocabulary_index(item_hashes, self.items)

    def event_indexes(self, histories: Histories) -> tuple[Indexes, Indexes, Indexes]:
        """Items, actions and surfaces of all events, int64[N] each."""
        return (
            self.item_indexes(histories.values["item"]),
            vocabulary_index(histories.values["action"], self.actions),
            vocabulary_index(histories.values["surface"], self.surfaces),
        )
