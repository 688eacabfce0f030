"""Sequences of similar length share one padded call: little padding, and some twenty calls for a batch of any shape."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

_SHORTEST_SHARE = 0.75  # of the bucket's longest sequence: below it a new bucket starts
_BUCKET_SLACK = 4  # events of difference always tolerated, so that very short sequences share a bucket


def buckets(lengths: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    """Indexes of the non-empty sequences, longest first, cut where the length falls too far below the first."""
    order = np.argsort(-lengths, kind="stable")
    order = order[lengths[order] > 0]
    while order.size:
        longest = int(lengths[order[0]])
        shortest = min(int(longest * _SHORTEST_SHARE), longest - _BUCKET_SLACK)
        size = int(np.searchsorted(-lengths[order], -shortest, side="right"))
        yield order[:size]
        order = order[size:]
