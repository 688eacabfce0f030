"""Groups sequences of similar length for one padded call: little padding, about twenty calls for a batch of any shape.

The CPU versions of both attention operators use it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

_SHORTEST_SHARE = 0.75  # of the bucket's longest sequence; a shorter one starts a new bucket
_BUCKET_SLACK = 4  # events of difference always allowed, so that very short sequences share a bucket


def buckets(lengths: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    """Indexes of the non-empty sequences of each bucket, longest first; much shorter ones start the next bucket."""
    order = np.argsort(-lengths, kind="stable")
    order = order[lengths[order] > 0]
    while order.size:
        longest = int(lengths[order[0]])
        shortest = min(int(longest * _SHORTEST_SHARE), longest - _BUCKET_SLACK)
        size = int(np.searchsorted(-lengths[order], -shortest, side="right"))
        yield order[:size]
        order = order[size:]
