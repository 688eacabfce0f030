"""What a vector must be before it is stored: of the release's dimension, finite, of norm 1."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from spoor.base.errors import DataError
from spoor.base.numbers import number_text

_NORM_TOLERANCE = 1e-3


def bad_vectors(vectors: npt.NDArray[np.float32], events_used: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """bool[n] of float32[n, d]: values that are not finite, or a norm that is not 1. Zeros are right exactly where no
    event was used."""
    norms = np.linalg.norm(np.asarray(vectors, np.float64), axis=1)  # not finite where a value is not
    none = (events_used == 0) & (norms == 0)
    return ~(none | (np.abs(norms - 1) <= _NORM_TOLERANCE))


def check_vectors(
    vectors: npt.NDArray[np.float32], events_used: npt.NDArray[np.int64], release: str, dimension: int
) -> None:
    """Raises DataError that names the first vector at fault."""
    if vectors.ndim != 2 or vectors.shape[1] != dimension:
        raise DataError(
            f"embeddings of release `{release}` have shape {vectors.shape}, expected (n, {dimension})",
            hint="apply the definitions of the release that computed them",
        )
    bad = bad_vectors(vectors, events_used)
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        norm = number_text(float(np.linalg.norm(vectors[first])))
        raise DataError(
            f"release `{release}` gave {int(bad.sum()):,} of {len(bad):,} embeddings that cannot be stored; row "
            f"{first} has norm {norm} from {int(events_used[first])} events, expected 1 (0 only without events)",
            hint=f"check the release with `spoor release show {release}`",
        )
