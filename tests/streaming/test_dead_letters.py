"""Dead letters survive the way through their topic."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activity.errors import DataError, EventError
from streaming.dead_letters import ENVELOPE_BYTES, DeadLetter, decode_dead_letter, encode_dead_letter, refusal


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


@given(optional_bytes, optional_bytes, st.text(max_size=40))
def test_key_and_value_come_back_byte_for_byte(key, value, found):
    original = letter(key, value, found=found, replay_of="activity/0/1")
    record_key, record_value = encode_dead_letter(original)
    assert record_key == b"activity/1/2"
    assert decode_dead_letter(record_value) == original


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
