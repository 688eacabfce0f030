"""Dead letters survive the way through their topic."""

import hashlib
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoor.base.errors import DataError, EventError
from spoor.broker.topics import ENVELOPE_BYTES, LEAST_LETTER_BYTES
from spoor.streaming.records.dead_letters import (
    DeadLetter,
    decode_dead_letter,
    digest,
    encode_dead_letter,
    fitting_records,
    refusal,
)


def letter(key: bytes | None = b"k", value: bytes | None = b"v", **fields) -> DeadLetter:
    whole = {
        "topic": "activity",
        "partition": 1,
        "offset": 2,
        "append_time_ms": 3,
        "reason": "not-json",
        "field": "value",
        "found": "x",
        "expected": "JSON",
        "error": "EventError",
        "key": key,
        "value": value,
    }
    return DeadLetter(**(whole | fields))


optional_bytes = st.none() | st.binary(max_size=200)


@given(optional_bytes, optional_bytes, st.text(max_size=40), st.sampled_from(["plain", "zlib"]))
def test_key_and_value_come_back_byte_for_byte(key, value, found, form):
    original = letter(key, value, found=found, replay_of="activity/0/1")
    record_key, record_value = encode_dead_letter(original, form)
    assert record_key == b"activity/1/2"
    assert decode_dead_letter(record_value) == original


@given(optional_bytes, optional_bytes)
def test_a_reference_has_size_and_digest_and_no_bytes(key, value):
    found = decode_dead_letter(encode_dead_letter(letter(key, value), "reference")[1])
    assert (found.key, found.value, found.is_reference, found.is_gone) == (None, None, True, True)
    assert found.size == len(key or b"") + len(value or b"")
    assert found.sha256 == digest(key, value) == hashlib.sha256((key or b"") + (value or b"")).hexdigest()
    assert encode_dead_letter(found) == encode_dead_letter(letter(key, value), "reference")


@pytest.mark.parametrize(
    ("value", "most_bytes", "forms"),
    [
        (b"v" * 1000, 1_000_000, ["plain", "zlib", "reference"]),  # two in reserve, should the broker refuse
        (b"v" * 3_000_000, 1_000_000, ["zlib", "reference"]),
        (random.Random(0).randbytes(900_000), 1_000_000, ["reference"]),
        (b"v" * 3_000_000, 0, ["reference"]),
    ],
)
def test_the_fullest_form_that_fits_comes_first(value, most_bytes, forms):
    records = list(fitting_records(letter(value=value), most_bytes))
    assert [form for form, _, _ in records] == forms
    assert all(len(key) + len(value) <= most_bytes for _, key, value in records[:-1])


def test_any_reference_fits_into_the_smallest_topic():
    large = letter(b"k" * 10**6, b"v" * 10**6, topic="t" * 249, found="\N{CAT FACE}" * 10**4, expected="é" * 10**4)
    assert sum(map(len, encode_dead_letter(large, "reference"))) < LEAST_LETTER_BYTES


def test_a_letter_of_an_earlier_version_is_read():
    _, value = encode_dead_letter(letter())
    assert not {"size", "sha256", "compression"} & json.loads(value).keys()


def test_no_value_and_an_empty_value_are_told_apart():
    values = [decode_dead_letter(encode_dead_letter(letter(value=value))[1]).value for value in (None, b"")]
    assert values == [None, b""]


def test_the_largest_envelope_fits_beside_the_original_bytes():
    error = EventError(reason="r" * 40, field="user_id", found="\N{CAT FACE}" * 80, expected="é" * 200)
    large = letter(b"k" * 100, b"v" * 1000, topic="t" * 249, replay_of="t" * 249 + "/1/2", **refusal(error))
    assert len(encode_dead_letter(large)[1]) < 1100 * 4 / 3 + ENVELOPE_BYTES


def test_an_unexpected_exception_is_named():
    assert refusal(ZeroDivisionError("boom")) == {
        "reason": "decoder-error",
        "field": "value",
        "found": "boom",
        "expected": "an event",
        "error": "ZeroDivisionError",
    }


@pytest.mark.parametrize("value", [b"", b"{}", b"[]", b"junk", b"\xff", json.dumps({"key": 1}).encode()])
def test_a_foreign_record_is_refused_with_a_hint(value):
    with pytest.raises(DataError) as raised:
        decode_dead_letter(value)
    assert "kafka.dead_letter_topic" in raised.value.hint
