"""One array of one value for every type that Arrow can build: a usual value, and the oddest that the type can hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal

import numpy as np
import pyarrow as pa

LARGEST = {32: 2**31 - 1, 64: 2**63 - 1}


def plain_arrays() -> Iterator[pa.Array]:
    for bits in (8, 16, 32, 64):
        for kind in (getattr(pa, f"int{bits}")(), getattr(pa, f"uint{bits}")()):
            yield pa.array([7], kind)
    yield pa.array([2**64 - 1], pa.uint64())
    yield pa.array([np.float16(7)], pa.float16())
    for kind in (pa.float32(), pa.float64()):
        yield from (pa.array([value], kind) for value in (7.0, float("nan"), float("inf")))
    yield from (pa.array([True]), pa.nulls(1))
    for kind in (pa.decimal32, pa.decimal64, pa.decimal128, pa.decimal256):
        yield from (pa.array([Decimal(700)], kind(5, scale)) for scale in (0, 2, -2))
    yield pa.array([Decimal(10**60)], pa.decimal256(76, 0))
    for kind in (pa.string(), pa.large_string(), pa.string_view()):
        yield pa.array(["7"], kind)
        yield invalid_text(kind)
    for kind in (pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(1)):
        yield from (pa.array([value], kind) for value in (b"7", b"\xff"))
    yield pa.array([b""], pa.binary(0))
    moments = [pa.date32(), pa.date64(), pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")]
    for unit in ("s", "ms", "us", "ns"):
        moments.append(pa.duration(unit))
        moments += [pa.timestamp(unit, zone) for zone in (None, "", "UTC", "+05:00", "+25:99", "Mars/Phobos")]
    for kind in moments:
        stored = pa.int32() if kind.bit_width == 32 else pa.int64()
        yield from (pa.array([value], stored).view(kind) for value in (1, LARGEST[kind.bit_width], None))
    yield from (pa.array([value], pa.month_day_nano_interval()) for value in ((1, 2, 3), None))


def invalid_text(kind: pa.DataType) -> pa.Array:
    """Text of bytes that are no UTF-8, as casts without checks leave it."""
    stored = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}
    return pa.Array.from_buffers(kind, 1, pa.array([b"\xff"], stored[kind]).buffers())


def nested_arrays() -> Iterator[pa.Array]:
    for values in (pa.array([1]), invalid_text(pa.string()), pa.array([1], pa.timestamp("ns", "Mars/Phobos"))):
        yield pa.ListArray.from_arrays([0, 1], values)
        yield pa.LargeListArray.from_arrays([0, 1], values)
        yield pa.FixedSizeListArray.from_arrays(values, 1)
        yield pa.ListViewArray.from_arrays([0], [1], values)
        yield pa.LargeListViewArray.from_arrays([0], [1], values)
        yield pa.StructArray.from_arrays([values], ["a"])
        yield pa.StructArray.from_arrays([values, values], ["a", "a"])
        yield pa.MapArray.from_arrays([0, 1], pa.array(["a"]), values)
        yield pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [values])
        yield pa.UnionArray.from_dense(pa.array([0], pa.int8()), pa.array([0], pa.int32()), [values])


def extension_arrays() -> Iterator[pa.Array]:
    for kind, stored in [
        (pa.uuid(), pa.array([b"u" * 16], pa.binary(16))),
        (pa.json_(), pa.array(["{}"])),
        (pa.bool8(), pa.array([1], pa.int8())),
        (pa.opaque(pa.int64(), "a", "b"), pa.array([1])),
        (pa.fixed_shape_tensor(pa.int64(), [1]), pa.array([[1]], pa.list_(pa.int64(), 1))),
    ]:
        yield pa.ExtensionArray.from_storage(kind, stored)


def encoded(array: pa.Array) -> Iterator[pa.Array]:
    yield pa.DictionaryArray.from_arrays(pa.array([0], pa.int8()), array)
    with suppress(pa.ArrowInvalid):  # it looks at the values
        yield pa.RunEndEncodedArray.from_arrays(pa.array([1], pa.int32()), array)


ARRAYS = [*plain_arrays(), *nested_arrays(), *extension_arrays()]
ARRAYS += [each for array in ARRAYS for each in encoded(array)]
