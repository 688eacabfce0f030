"""Bytes laid out by hand are what Feast's own messages would be."""

from __future__ import annotations

import numpy as np
import pytest
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import FloatList, Value
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from spoor.base.errors import DataError
from spoor.store.guarded.protobytes import (
    EntityKeys,
    bytes_value,
    floats_value,
    int_value,
    read_bytes,
    read_floats,
    read_int,
    read_string,
)


@given(npst.arrays(np.float32, st.integers(1, 300), elements=st.floats(width=32)))
def test_floats_are_the_bytes_of_feast_s_message(vector):
    value = floats_value(vector)
    assert value == Value(float_list_val=FloatList(val=vector.tolist())).SerializeToString()
    assert read_floats(value, len(vector)).tobytes() == vector.tobytes()


@pytest.mark.parametrize("dimension", [1, 31, 32, 256, 4096, 40_000])
def test_long_vectors_have_longer_lengths(dimension):
    vector = np.arange(dimension, dtype=np.float32)
    assert Value.FromString(floats_value(vector)).float_list_val.val == vector.tolist()
    assert (read_floats(floats_value(vector), dimension + 1) == vector).all()  # another length than expected


@pytest.mark.parametrize("read", [read_bytes, read_int, read_string, lambda value: read_floats(value, 2)])
def test_bytes_that_are_no_value_are_a_data_error(read):
    with pytest.raises(DataError, match="3 bytes that are no value") as caught:
        read(b"\xff\xff\xff")
    assert caught.value.hint


def test_a_strided_vector_is_written_in_order():
    matrix = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert read_floats(floats_value(matrix[:, 1]), 3).tolist() == [1, 3, 5]


@given(st.integers(-(2**63), 2**63 - 1), st.binary(max_size=300))
def test_numbers_and_bytes_come_back(number, data):
    assert read_int(int_value(number)) == number and read_bytes(bytes_value(data)) == data


@given(st.text(), st.integers(-(2**63), 2**63 - 1))
def test_keys_are_feast_s_keys(text, number):
    for id_type, entity_id, value in (
        ("string", text, Value(string_val=text)),
        ("int64", str(number), Value(int64_val=number)),
    ):
        keys = EntityKeys("user_id", id_type)
        expected = serialize_entity_key(EntityKey(join_keys=["user_id"], entity_values=[value]), 3)
        assert keys.to_bytes(entity_id) == expected and expected.startswith(keys.prefix)
        assert keys.to_id(expected) == entity_id


@pytest.mark.parametrize("wrong", ["", "1.0", "01", "+1", " 1", "١", "1_0", str(2**63)])
def test_an_int64_key_takes_one_spelling_of_a_number_only(wrong):
    with pytest.raises(DataError, match="INT64"):
        EntityKeys("user_id", "int64").to_bytes(wrong)
