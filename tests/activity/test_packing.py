import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from activity.errors import DataError
from activity.history import EVENT_DTYPE, NEVER, Histories
from activity.packing import pack, read_forgotten_through, unpack

event = st.tuples(
    st.integers(-(2**47), 2**47 - 1), st.integers(0, 2**64 - 1), st.integers(0, 65535), st.integers(0, 65535)
)
GOLDEN_EVENTS = [
    (1_700_000_000_000, 0x0123456789ABCDEF, 1, 2),
    (1_700_000_000_001, 2**64 - 1, 65535, 2),
    (1_700_000_000_001, 2**64 - 1, 65535, 65535),
]
GOLDEN = bytes.fromhex(
    "53504801180001010300000003000000b48fd8c800000000"  # header
    "01000200ffff0200ffffffff"  # pairs
    "0068e5cf8b810168e5cf8b810168e5cf8b81"  # times
    "efcdab8967452301ffffffffffffffffffffffffffffffff"  # items
    "000102"  # codes
)
GOLDEN_EMPTY = bytes.fromhex("535048011800010100000000000000000000000000000000")


def histories(*users):
    return Histories.of([np.array(events, EVENT_DTYPE) for events in users])


@given(st.lists(st.lists(event, max_size=20), max_size=5))
def test_unpack_gives_back_what_was_packed(users):
    original = histories(*users)
    back = unpack(pack(original))
    assert back.offsets.tolist() == original.offsets.tolist()
    assert back.values.tolist() == original.values.tolist()


def test_the_bytes_are_those_of_codec_version_1():
    assert pack(histories(GOLDEN_EVENTS, [])) == [GOLDEN, GOLDEN_EMPTY]
    assert unpack([GOLDEN])[0].tolist() == GOLDEN_EVENTS


def test_an_event_takes_at_most_16_bytes_beside_header_and_pairs():
    one_pair = [(i, i, 7, 7) for i in range(1000)]
    many_pairs = [(i, i, i, 7) for i in range(1000)]
    assert len(pack(histories(one_pair))[0]) == 24 + 4 + 15 * 1000
    assert len(pack(histories(many_pairs))[0]) == 24 + 4 * 1000 + 16 * 1000
    assert unpack(pack(histories(many_pairs)))[0].tolist() == many_pairs


def test_every_damaged_byte_and_every_cut_is_noticed():
    for at in range(len(GOLDEN) - 4 * 5, len(GOLDEN)):  # the body's end
        broken = bytearray(GOLDEN)
        broken[at] ^= 0x40
        with pytest.raises(DataError, match="damaged"):
            unpack([bytes(broken)])
    for length in range(len(GOLDEN)):
        with pytest.raises(DataError, match="damaged"):
            unpack([GOLDEN[:length]])
    with pytest.raises(DataError, match="damaged"):
        unpack([GOLDEN + b"\0"])


@given(st.binary(max_size=80))
def test_foreign_bytes_are_refused(data):
    with pytest.raises(DataError):
        unpack([b"x" + data])


def test_another_version_is_named():
    with pytest.raises(DataError, match="codec version 9"):
        unpack([GOLDEN[:3] + b"\x09" + GOLDEN[4:]])


def test_a_longer_header_of_a_later_writer_is_skipped():
    longer = bytearray(GOLDEN[:24] + b"new!" + GOLDEN[24:])
    struct.pack_into("<H", longer, 4, 28)
    assert zlib.crc32(longer[28:]) == zlib.crc32(GOLDEN[24:])
    assert unpack([bytes(longer)])[0].tolist() == GOLDEN_EVENTS


def test_a_reference_to_a_missing_pair_is_damage():
    body = GOLDEN[24:-1] + b"\x03"
    header = bytearray(GOLDEN[:24])
    struct.pack_into("<I", header, 16, zlib.crc32(body))
    with pytest.raises(DataError, match="pair"):
        unpack([bytes(header) + body])


def test_times_that_do_not_fit_are_refused_before_anything_is_packed():
    with pytest.raises(DataError, match="2\\^47"):
        pack(histories([(2**47, 1, 1, 1)]))


MARKED = bytes.fromhex("5350480120000101000000000000000000000000dd732dcb0068e5cf8b010000")


def test_the_marker_of_a_forgotten_user_lies_in_a_longer_header():
    through = np.array([NEVER, 1_700_000_000_000, NEVER])
    packed = pack(histories(GOLDEN_EVENTS, [], []), through)
    assert [packed[0], packed[2]] == [GOLDEN, GOLDEN_EMPTY]  # nobody else's bytes change
    assert packed[1] == MARKED
    assert read_forgotten_through(packed).tolist() == through.tolist()
    assert unpack(packed).lengths.tolist() == [3, 0, 0]


@given(st.lists(event, max_size=5), st.integers(NEVER, 2**63 - 1))
def test_a_marker_and_events_come_back(events, through):
    packed = pack(histories(events), np.array([through]))
    assert read_forgotten_through(packed).tolist() == [through]
    assert unpack(packed)[0].tolist() == histories(events)[0].tolist()


def test_every_damaged_bit_of_a_marker_is_noticed():
    for at in range(20, 32):  # its checksum and itself
        broken = bytearray(MARKED)
        broken[at] ^= 0x40
        for read in (unpack, read_forgotten_through):
            with pytest.raises(DataError, match="checksum of its header"):
                read([bytes(broken)])
    for length in range(len(MARKED)):
        with pytest.raises(DataError, match="damaged"):
            read_forgotten_through([MARKED[:length]])
