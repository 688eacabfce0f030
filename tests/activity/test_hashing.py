import numpy as np
from aiokafka.partitioner import murmur2 as aiokafka_murmur2
from kafka.partitioner.default import murmur2

from spoor.activity.hashing import (
    HASH_VERSION,
    OLD_NAMES,
    buckets_of,
    hash_item,
    hash_items,
    hash_name,
    hash_names,
    name_range,
    old_names,
)


def test_golden_values_of_version_2():
    """Changing these changes every stored history and release: raise HASH_VERSION instead."""
    assert HASH_VERSION == 2
    assert hash_item("1193") == 1724064002158076617
    assert hash_item("ünïcode") == 7779847298030142217
    assert hash_name("view") == 9135384158543654340
    assert hash_name("like") == 1401278999670895047
    assert hash_name("home") == 8843685605442633564
    assert buckets_of(["1", "ü", "zzz"], 8).tolist() == [1, 5, 6]


def test_arrays_agree_with_single_names():
    names = ["a", "b", "", "ü"]
    assert hash_items(names).tolist() == [hash_item(n) for n in names]
    assert hash_names(names).tolist() == [hash_name(n) for n in names]
    assert hash_items([]).tolist() == []


def test_version_1_kept_the_first_16_bits_of_a_name():
    names = hash_names(["view", "like", "home", "rate_5"])
    kept = np.array([32455, 4978, 31419, 20485], np.uint64)
    assert old_names(names).tolist() == kept.tolist() == old_names(kept).tolist()
    first, last = name_range(kept)
    assert ((first <= names) & (names <= last)).all()
    assert (old_names(first) == kept).all() and (old_names(last) == kept).all()
    assert (names >= OLD_NAMES).all()


def test_names_sort_as_in_version_1():
    hashes = np.sort(hash_names([f"name-{number}" for number in range(100)]))
    assert (np.diff(old_names(hashes).astype(np.int64)) >= 0).all()


def test_100_000_names_have_100_000_hashes():
    assert len(np.unique(hash_names([f"page-{number}" for number in range(100_000)]))) == 100_000


def test_users_go_to_the_partitions_that_java_producers_choose():
    """Keys are placed by murmur2: the test vectors of Kafka's Java client hold in both of our clients."""
    vectors = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536}
    for key, hashed in vectors.items():
        assert murmur2(key) == aiokafka_murmur2(key) == hashed % 2**32
