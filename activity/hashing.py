"""Names to numbers, part of every model's and every stored history's identity.

An item is the 64-bit, an action or a surface the 16-bit xxhash (XXH3) of its UTF-8 name. The seeds belong to
HASH_VERSION: changing either makes new histories and releases. tests/activity/test_hashing.py holds golden values.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from activity.errors import UsageError

HASH_VERSION = 1
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
    """The unsigned 16-bit hash of an action's or surface's name."""
    return xxhash.xxh3_64_intdigest(name.encode(), seed=_NAME_SEED) & 0xFFFF


def hash_names(names: Sequence[str]) -> npt.NDArray[np.uint16]:
    """uint16[n]: the hash of each name."""
    return np.fromiter((hash_name(name) for name in names), np.uint16, count=len(names))


def check_names(names: Iterable[str], *, kind: str) -> None:
    """Raises UsageError if two different names share a 16-bit hash: they would be one name in every history."""
    seen: dict[int, str] = {}
    for name in names:
        other = seen.setdefault(hash_name(name), name)
        if other != name:
            raise UsageError(
                f"{kind} names `{other}` and `{name}` share the 16-bit hash {hash_name(name)}",
                hint="rename one of them before its events reach Kafka",
            )


def buckets_of(user_ids: Sequence[str], buckets: int) -> npt.NDArray[np.int32]:
    """int32[n] in [0, buckets): where each user's events lie in the lake and the offline log."""
    return (user_hashes(user_ids) % np.uint64(buckets)).astype(np.int32)


def user_hashes(user_ids: Sequence[str]) -> npt.NDArray[np.uint64]:
    """uint64[n]: the hash of each user's id, from which `buckets_of` takes its bucket."""
    hashes = (xxhash.xxh3_64_intdigest(user.encode(), seed=_BUCKET_SEED) for user in user_ids)
    return np.fromiter(hashes, np.uint64, count=len(user_ids))


def mix_bits(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of splitmix64: a bijection of 64 bits in which every input bit moves every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
