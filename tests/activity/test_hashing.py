import pytest
from aiokafka.partitioner import murmur2 as aiokafka_murmur2
from kafka.partitioner.default import murmur2

from activity.errors import UsageError
from activity.hashing import HASH_VERSION, buckets_of, check_names, hash_item, hash_items, hash_name, hash_names


def test_golden_values_of_version_1():
    """Changing these changes every stored history and release: raise HASH_VERSION instead."""
    assert HASH_VERSION == 1
    assert hash_item("1193") == 1724064002158076617
    assert hash_item("ünïcode") == 7779847298030142217
    assert (hash_name("view"), hash_name("rate_5"), hash_name("home")) == (32455, 20485, 31419)
    assert buckets_of(["1", "ü", "zzz"], 8).tolist() == [1, 5, 6]


def test_arrays_agree_with_single_names():
    names = ["a", "b", "", "ü"]
    assert hash_items(names).tolist() == [hash_item(n) for n in names]
    assert hash_names(names).tolist() == [hash_name(n) for n in names]
    assert hash_items([]).tolist() == []


def test_two_names_with_one_hash_are_an_error_that_names_both():
    seen: dict[int, str] = {}
    for i in range(100_000):
        name = f"action{i}"
        if (other := seen.setdefault(hash_name(name), name)) != name:
            break
    with pytest.raises(UsageError, match=f"`{other}` and `{name}`"):
        check_names(["view", other, name], kind="action")
    check_names(["view", "like", "view"], kind="action")


def test_users_go_to_the_partitions_that_java_producers_choose():
    """Keys are placed by murmur2: the test vectors of Kafka's Java client hold in both of our clients."""
    vectors = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536}
    for key, hashed in vectors.items():
        assert murmur2(key) == aiokafka_murmur2(key) == hashed % 2**32
