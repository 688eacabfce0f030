"""The vocabulary of a release: the items, actions and surfaces of its training events, as hashes with an index each.

Indexes start at 1 in the order of the hashes; 0 is the unknown. Releases of hash version 1 hold 16-bit hashes of action
and surface names, and so do events stored then; those 16 bits match names across the versions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spoor.activity.hashing import OLD_NAMES, name_range, old_names
from spoor.activity.history import Histories
from spoor.encoder.model.hashing import UNKNOWN, vocabulary_index

Indexes = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Sorted and without duplicates: `items` uint64[V], `actions` uint64[A], `surfaces` uint64[S].
    `item_ids` holds the V raw ids in the order of `items`."""

    items: npt.NDArray[np.uint64]
    actions: npt.NDArray[np.uint64]
    surfaces: npt.NDArray[np.uint64]
    item_ids: tuple[str, ...]

    def item_indexes(self, item_hashes: npt.NDArray[np.uint64]) -> Indexes:
        """uint64[n] to int64[n] in [0, V]."""
        return vocabulary_index(item_hashes, self.items)

    def event_indexes(self, histories: Histories) -> tuple[Indexes, Indexes, Indexes]:
        """Items, actions and surfaces of all events, int64[N] each."""
        return (
            self.item_indexes(histories.values["item"]),
            name_indexes(histories.values["action"], self.actions),
            name_indexes(histories.values["surface"], self.surfaces),
        )


def name_indexes(hashes: npt.NDArray[np.uint64], known: npt.NDArray[np.uint64]) -> Indexes:
    """As `vocabulary_index` for names; either side may be of hash version 1. An old name that several known names
    match is unknown."""
    if len(known) and known[-1] < OLD_NAMES:  # an old release
        return vocabulary_index(old_names(hashes), known)
    found = vocabulary_index(hashes, known)
    old = np.flatnonzero((hashes < OLD_NAMES) & (found == UNKNOWN))
    if len(old):
        first, last = name_range(hashes[old])
        place, end = np.searchsorted(known, first), np.searchsorted(known, last, side="right")
        found[old] = np.where(end - place == 1, place + 1, UNKNOWN)
    return found
