"""What a client says of a codec that it lacks, in Spoor's words. Real topics: tests/streaming/test_compression.py."""

import aiokafka.errors
import kafka.errors
import pytest

from spoor.broker.compression import missing_codec


@pytest.mark.parametrize("codec", ["lz4", "snappy", "zstd"])
def test_the_error_names_codec_and_package(codec: str):
    text = f"Libraries for {codec} compression codec not found"
    for kind, package in [
        (aiokafka.errors.UnsupportedCodecError, "cramjam"),
        (kafka.errors.UnsupportedCodecError, {"snappy": "python-snappy", "zstd": "zstandard"}.get(codec, codec)),
    ]:
        found = missing_codec(kind(text))
        assert found is not None
        assert f"compressed with {codec}" in found.message and f"pip install {package}" in found.hint


def test_the_cause_of_an_error_counts():
    try:
        try:
            raise aiokafka.errors.UnsupportedCodecError("Libraries for zstd compression codec not found")
        except aiokafka.errors.KafkaError as error:
            raise RuntimeError("the stream crashed") from error
    except RuntimeError as error:
        found = missing_codec(error)
    assert found is not None and "zstd" in found.message


def test_a_codec_that_no_client_knows_is_no_missing_package():
    found = missing_codec(kafka.errors.UnsupportedCodecError("Unrecognized compression type: 5"))
    assert found is not None and "type: 5" in found.message and "pip install" not in found.hint


@pytest.mark.parametrize("error", [kafka.errors.KafkaTimeoutError("lz4"), OSError("snappy"), ValueError()])
def test_other_errors_are_none(error: Exception):
    assert missing_codec(error) is None
