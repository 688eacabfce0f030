"""Hashes of names, part of the identity of every model and every stored history.

An item, an action or a surface becomes the 64-bit xxhash (XXH3) of its UTF-8 name. The seeds belong to HASH_VERSION: a
change of either makes new histories and releases. tests/activity/test_hashing.py holds golden values.

Version 1 kept 16 bits of an action's or surface's hash. Version 2 puts these 16 bits first: an old name is the prefix
of the new one, both sort alike, and a number below OLD_NAMES is an old name. Items are the same in both.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

HASH_VERSION = 2
READABLE_HASH_VERSIONS = (1, 2)
OLD_NAMES = 1 << 16  # smaller numbers are names of version 1
_NEW_BITS = np.uint64(48)  # added by version 2
_ITEM_SEED = 0x53504F4F52_01  # "SPOOR", version 1
_NAME_SEED = 0x53504F4F52_02
_BUCKET_SEED = 0x53504F4F52_03


def hash_item(item_id: str) -> int:
    """The unsigned 64-bit hash of an item's id."""
    return xxhash.xxh3_64_intdigest(item_id.encode(), seed=_ITEM_SEED)


def hash_items(item_ids: Sequence[str]) -> npt.NDArray[np.uint64]:
    """uint64[n]: the hash of each id."""
    return np.fromiter((hash_item(item) for item in item_ids), np.uint64, count=len(item_ids))


def hash_name(name: str) -> int:
    """The unsigned 64-bit hash of an action's or surface's name."""
    digest = xxhash.xxh3_64_intdigest(name.encode(), seed=_NAME_SEED)
    return digest >> 16 | (digest & 0xFFFF) << 48


def hash_names(names: Sequence[str]) -> npt.NDArray[np.uint64]:
    """uint64[n]: the hash of each name."""
    return np.fromiter((hash_name(name) for name in names), np.uint64, count=len(names))


def old_names(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """uint64[n]: each name's hash in version 1; a hash of version 1 is unchanged."""
    return np.where(hashes < OLD_NAMES, hashes, hashes >> _NEW_BITS)


def name_range(old: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """The smallest and the largest name of version 2 that begin with each name of version 1."""
    first = old << _NEW_BITS
    return first, first | (np.uint64(1) << _NEW_BITS) - np.uint64(1)


def buckets_of(user_ids: Sequence[str], buckets: int) -> npt.NDArray[np.int32]:
    """int32[n] in [0, buckets): the bucket of each user's events in the lake and the offline log."""
    return (user_hashes(user_ids) % np.uint64(buckets)).astype(np.int32)


def user_hashes(user_ids: Sequence[str]) -> npt.NDArray[np.uint64]:
    """uint64[n]: the hash of each user's id; `buckets_of` derives the bucket from it."""
    hashes = (xxhash.xxh3_64_intdigest(user.encode(), seed=_BUCKET_SEED) for user in user_ids)
    return np.fromiter(hashes, np.uint64, count=len(user_ids))


def mix_bits(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of splitmix64: a bijection of 64 bits in which every input bit affects every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
