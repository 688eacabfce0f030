"""From an item's 64-bit hash to its rows in the hashed tables.

Each of the n hash functions is the finaliser of splitmix64 over (item hash + a constant of that function). Rows are
part of a model's identity: any change here needs a new ROW_HASH_VERSION. tests/encoder/model/test_hashing.py holds
golden rows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from spoor.activity.hashing import mix_bits

ROW_HASH_VERSION = 1
UNKNOWN = 0  # the reserved row, and the reserved vocabulary index, of unknown items, actions and surfaces

_GOLDEN_GAMMA = 0x9E3779B97F4A7C15


def table_rows(item_hashes: npt.NDArray[np.uint64], *, functions: int, rows: int) -> npt.NDArray[np.int64]:
    """uint64[n] to int64[n, functions], each in [1, rows): row 0 is reserved for unknown items."""
    result = np.empty((len(item_hashes), functions), np.int64)
    for function in range(functions):
        offset = np.uint64((function + 1) * _GOLDEN_GAMMA % 2**64)
        result[:, function] = 1 + (mix_bits(item_hashes + offset) % np.uint64(rows - 1)).astype(np.int64)
    return result


def vocabulary_rows(known_hashes: npt.NDArray[np.uint64], *, functions: int, rows: int) -> npt.NDArray[np.int64]:
    """As `table_rows` for a vocabulary: int64[known + 1, functions], where index 0 is the unknown item."""
    unknown = np.full((1, functions), UNKNOWN, np.int64)
    return np.concatenate([unknown, table_rows(known_hashes, functions=functions, rows=rows)])


def vocabulary_index(
    hashes: npt.NDArray[np.unsignedinteger], known: npt.NDArray[np.unsignedinteger]
) -> npt.NDArray[np.int64]:
    """Position of each hash in the sorted array `known`, plus 1; 0 (UNKNOWN) if it is missing."""
    if len(known) == 0:
        return np.zeros(len(hashes), np.int64)
    place = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return np.where(known[place] == hashes, place + 1, UNKNOWN).astype(np.int64)
