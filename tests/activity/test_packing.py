import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoor.activity.hashing import hash_names
from spoor.activity.history import EVENT_DTYPE, NEVER, Histories
from spoor.activity.packing import holds_events, pack, read_forgotten_through, unpack
from spoor.base.errors import DataError

name = st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 65535, 65536])
event = st.tuples(st.integers(-(2**47), 2**47 - 1), st.integers(0, 2**64 - 1), name, name)
GOLDEN_EVENTS = [
    (1_700_000_000_000, 0x0123456789ABCDEF, 1, 2),
    (1_700_000_000_001, 2**64 - 1, 65535, 2),
    (1_700_000_000_001, 2**64 - 1, 65535, 2**64 - 1),
]
GOLDEN = bytes.fromhex(
    "53504802180002010300000003000000a1ec6bea00000000"  # header
    "0400000001000000000000000200000000000000ffff000000000000ffffffffffffffff"  # names
    "000102010203"  # pairs
    "0068e5cf8b810168e5cf8b810168e5cf8b81"  # times
    "efcdab8967452301ffffffffffffffffffffffffffffffff"  # items
    "000102"  # codes
)
GOLDEN_EMPTY = bytes.fromhex("535048021800020100000000000000001cdf44210000000000000000")
# Written by the last version that had names of 16 bits:
OLD_EVENTS = [(*GOLDEN_EVENTS[0][:2], 1, 2), (*GOLDEN_EVENTS[1][:2], 65535, 2), (*GOLDEN_EVENTS[2][:2], 65535, 65535)]
OLD_GOLDEN = bytes.fromhex(
    "53504801180001010300000003000000b48fd8c800000000"  # header
    "01000200ffff0200ffffffff"  # pairs
    "0068e5cf8b810168e5cf8b810168e5cf8b81"  # times
    "efcdab8967452301ffffffffffffffffffffffffffffffff"  # items
    "000102"  # codes
)
OLD_EMPTY = bytes.fromhex("535048011800010100000000000000000000000000000000")
OLD_MARKED = bytes.fromhex("5350480120000101000000000000000000000000dd732dcb0068e5cf8b010000")


def histories(*users):
    return Histories.of([np.array(events, EVENT_DTYPE) for events in users])


@given(st.lists(st.lists(event, max_size=20), max_size=5))
def test_unpack_gives_back_what_was_packed(users):
    original = histories(*users)
    back = unpack(pack(original))
    assert back.offsets.tolist() == original.offsets.tolist()
    assert back.values.tolist() == original.values.tolist()


def test_the_bytes_are_those_of_codec_version_2():
    assert pack(histories(GOLDEN_EVENTS, [])) == [GOLDEN, GOLDEN_EMPTY]
    assert unpack([GOLDEN])[0].tolist() == GOLDEN_EVENTS


def test_codec_version_1_stays_readable_and_becomes_version_2():
    mixed = unpack([OLD_GOLDEN, GOLDEN, OLD_EMPTY, OLD_GOLDEN, GOLDEN_EMPTY])
    assert mixed.values.tolist() == [*OLD_EVENTS, *GOLDEN_EVENTS, *OLD_EVENTS]
    assert mixed.lengths.tolist() == [3, 3, 0, 3, 0]
    assert unpack([OLD_EMPTY]).count == 1
    (again,) = pack(unpack([OLD_GOLDEN]))
    assert again[3] == 2 and unpack([again]).values.tolist() == OLD_EVENTS


def test_an_event_takes_at_most_16_bytes_beside_header_and_tables():
    one_pair = [(i, i, 7, 7) for i in range(1000)]
    some_pairs = [(i, i, i % 10, 2**60 + i // 10 % 10) for i in range(256)]
    many_pairs = [(i, i, i, 7) for i in range(1000)]
    assert len(pack(histories(one_pair))[0]) == 24 + (4 + 8) + 2 + 15 * 1000
    assert len(pack(histories(some_pairs))[0]) == 24 + (4 + 8 * 20) + 2 * 100 + 15 * 256
    assert len(pack(histories(many_pairs))[0]) == 24 + (4 + 8 * 1000) + 4 * 1000 + 16 * 1000
    assert unpack(pack(histories(many_pairs)))[0].tolist() == many_pairs


def test_more_than_65_536_names_in_one_history_come_back():
    rng = np.random.default_rng(0)
    events = np.zeros(70_000, EVENT_DTYPE)
    events["timestamp"] = np.arange(70_000)
    events["action"], events["surface"] = rng.integers(2**64, size=(2, 70_000), dtype=np.uint64)
    original = Histories.of([events[:3], events, events[:0], events[:300]])
    assert (unpack(pack(original)).values == original.values).all()


def test_equal_histories_have_equal_bytes_whatever_they_are_packed_with():
    rng = np.random.default_rng(1)
    users = []
    for length in (5, 64, 0, 300):
        events = np.zeros(length, EVENT_DTYPE)
        events["timestamp"] = np.arange(length)
        events["action"], events["surface"] = hash_names([f"n{k}" for k in range(20)])[
            rng.integers(20, size=(2, length))
        ]
        users.append(events)
    assert pack(Histories.of(users)) == [pack(Histories.of([events]))[0] for events in users]


def test_every_damaged_byte_and_every_cut_is_noticed():
    for golden in (GOLDEN, OLD_GOLDEN):
        for at in range(24, len(golden)):
            broken = bytearray(golden)
            broken[at] ^= 0x40
            with pytest.raises(DataError, match="damaged"):
                unpack([bytes(broken)])
        for length in range(len(golden)):
            with pytest.raises(DataError, match="damaged"):
                unpack([golden[:length]])
        with pytest.raises(DataError, match="damaged"):
            unpack([golden + b"\0"])


@pytest.mark.parametrize("golden", [GOLDEN, OLD_GOLDEN])
def test_counts_and_widths_that_do_not_fit_are_damage_though_every_checksum_matches(golden):
    for at in (*range(6, 16), *range(24, 28)):  # hash version to the number of pairs, and the number of names
        for value in (0, 1, 2, 3, 4, 255):
            if value == golden[at]:
                continue
            broken = bytearray(golden)
            broken[at] = value
            struct.pack_into("<I", broken, 16, zlib.crc32(broken[24:]))
            if golden is OLD_GOLDEN and at >= 24:
                assert unpack([bytes(broken)])[0].tolist() != OLD_EVENTS  # these are names themselves
            else:
                with pytest.raises(DataError):
                    unpack([bytes(broken)])


@given(st.binary(max_size=80))
def test_foreign_bytes_are_refused(data):
    with pytest.raises(DataError):
        unpack([b"x" + data])


def test_another_version_is_named():
    for golden in (GOLDEN, OLD_GOLDEN):
        with pytest.raises(DataError, match="codec version 9"):
            unpack([golden[:3] + b"\x09" + golden[4:]])
    with pytest.raises(DataError, match="codec version 2, hash version 1"):
        unpack([OLD_GOLDEN[:3] + b"\x02" + OLD_GOLDEN[4:]])


def test_a_longer_header_of_a_later_writer_is_skipped():
    longer = bytearray(GOLDEN[:24] + b"new!" + GOLDEN[24:])
    struct.pack_into("<H", longer, 4, 28)
    assert zlib.crc32(longer[28:]) == zlib.crc32(GOLDEN[24:])
    assert unpack([bytes(longer)])[0].tolist() == GOLDEN_EVENTS


def test_a_reference_to_a_missing_pair_or_name_is_damage():
    for golden, place in ((GOLDEN, len(GOLDEN) - 1), (OLD_GOLDEN, len(OLD_GOLDEN) - 1), (GOLDEN, 24 + 36)):
        broken = bytearray(golden)
        broken[place] = 4
        struct.pack_into("<I", broken, 16, zlib.crc32(broken[24:]))
        with pytest.raises(DataError, match="tables"):
            unpack([bytes(broken)])


def test_times_that_do_not_fit_are_refused_before_anything_is_packed():
    with pytest.raises(DataError, match="2\\^47"):
        pack(histories([(2**47, 1, 1, 1)]))


MARKED = bytes.fromhex("535048022000020100000000000000001cdf4421dd732dcb0068e5cf8b01000000000000")


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
    for marked in (MARKED, OLD_MARKED):
        for at in range(20, 32):  # its checksum and itself
            broken = bytearray(marked)
            broken[at] ^= 0x40
            for read in (unpack, read_forgotten_through):
                with pytest.raises(DataError, match="checksum of its header"):
                    read([bytes(broken)])
        for length in range(32):
            with pytest.raises(DataError, match="damaged"):
                read_forgotten_through([marked[:length]])


def test_a_marker_of_codec_version_1_is_read():
    assert read_forgotten_through([OLD_MARKED, OLD_GOLDEN]).tolist() == [1_700_000_000_000, NEVER]
    assert unpack([OLD_MARKED]).lengths.tolist() == [0]
    assert [holds_events(packed) for packed in (OLD_MARKED, OLD_GOLDEN, MARKED, GOLDEN)] == [False, True, False, True]
