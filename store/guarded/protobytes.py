"""Feast's stored bytes: entity keys and values, as Feast itself would write and read them. Reading raises DataError for
bytes that are no value.

Values are serialised `feast.types.Value` messages. An embedding is laid out straight from the float array, because
filling a repeated field one Python float at a time takes longer than the write itself.
"""

from __future__ import annotations

import struct
from functools import cache, lru_cache

import numpy as np
from feast.infra.key_encoding_utils import deserialize_entity_key, serialize_entity_key_prefix
from feast.protos.feast.types.Value_pb2 import Value, ValueType
from google.protobuf.message import DecodeError

from spoor.activity.fields import is_int64, is_of_type
from spoor.base.errors import DataError
from spoor.feature_repo.settings import IdType
from spoor.store.rows import Vector

KEY_VERSION = 3  # Feast's entity_key_serialization_version; earlier ones cannot be read back
NO_ROW = b""  # stands for the revision of a user without a history row
_FLOAT_LIST_TAG = Value.FLOAT_LIST_VAL_FIELD_NUMBER << 3 | 2
_PACKED_FLOATS_TAG = 1 << 3 | 2


def bytes_value(value: bytes) -> bytes:
    return Value(bytes_val=value).SerializeToString()


@lru_cache(4096)  # a user's rows share revision and times
def int_value(value: int) -> bytes:
    return Value(int64_val=value).SerializeToString()


def string_value(value: str) -> bytes:
    return Value(string_val=value).SerializeToString()


def floats_value(vector: Vector) -> bytes:
    return _floats_prefix(len(vector)) + np.ascontiguousarray(vector, "<f4").tobytes()


def read_bytes(value: bytes) -> bytes:
    return _value(value).bytes_val


def read_int(value: bytes) -> int:
    return _value(value).int64_val


def read_string(value: bytes) -> str:
    return _value(value).string_val


def read_floats(value: bytes, dimension: int) -> Vector:
    """float32[d]; any layout that protobuf allows is read, the usual one without a copy per float."""
    prefix = _floats_prefix(dimension)
    if value.startswith(prefix) and len(value) == len(prefix) + 4 * dimension:
        return np.frombuffer(value, "<f4", offset=len(prefix))
    return np.asarray(_value(value).float_list_val.val, np.float32)


def _value(value: bytes) -> Value:
    try:
        return Value.FromString(value)
    except DecodeError as error:
        raise DataError(
            f"the online store holds {len(value)} bytes that are no value of Feast's: {error}",
            hint="somebody else writes Spoor's views: remove the row, then run `spoor verify --repair`",
        ) from None


class EntityKeys:
    """Serialised entity keys of one join key: id ↔ bytes."""

    def __init__(self, join_key: str, id_type: IdType, *, setting: str = "events.user_id_type") -> None:
        """`setting`: the one that says the ids' type, for messages."""
        self.setting = setting
        self.prefix = serialize_entity_key_prefix([join_key], KEY_VERSION)
        self.id_type: IdType = id_type

    def holds(self, entity_id: str) -> bool:
        """Whether the type can hold this id."""
        return is_of_type(entity_id, self.id_type)

    def to_bytes(self, entity_id: str) -> bytes:
        """Raises DataError for an id that the type cannot hold."""
        if self.id_type == "string":
            value, value_type = entity_id.encode(), ValueType.STRING
        else:
            value, value_type = struct.pack("<q", self._int64(entity_id)), ValueType.INT64
        return self.prefix + struct.pack("<II", value_type, len(value)) + value

    def to_id(self, key: bytes) -> str:
        value = deserialize_entity_key(key, KEY_VERSION).entity_values[0]
        return value.string_val if self.id_type == "string" else str(value.int64_val)

    def _int64(self, entity_id: str) -> int:
        if not is_int64(entity_id):
            raise DataError(
                f"id {entity_id!r} is not an INT64 in its shortest form, as the entity's join key needs it",
                hint=f'set {self.setting} to "string" if ids are text',
            )
        return int(entity_id)


@cache
def _floats_prefix(dimension: int) -> bytes:
    """The bytes before the floats: tag and length of the list message, tag and length of its packed field."""
    packed = _varint(_PACKED_FLOATS_TAG) + _varint(4 * dimension)
    return _varint(_FLOAT_LIST_TAG) + _varint(len(packed) + 4 * dimension) + packed


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])
