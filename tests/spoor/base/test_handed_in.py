import pytest

from spoor.base.errors import UsageError
from spoor.base.handed_in import decode_text, read_text, refuse_url


@pytest.mark.parametrize("text", ["", "alice\r\nüser\n", "x\ufeff"])
def test_text_is_utf_8_with_a_byte_order_mark_or_without(text):
    assert decode_text(text.encode()) == decode_text(text.encode("utf-8-sig")) == text


@pytest.mark.parametrize(
    ("encoding", "named"),
    [
        ("utf-16", "UTF-16"),
        ("utf-16-be", "zero bytes, as UTF-16"),
        ("utf-16-le", "zero bytes, as UTF-16"),
        ("utf-32", "UTF-32"),
        ("cp1252", "line 2 has the byte 0xfc"),
    ],
)
def test_another_encoding_is_named(encoding, named):
    with pytest.raises(ValueError, match=named):
        decode_text("alice\nüser".encode(encoding))


def test_a_file_has_a_largest_size(tmp_path):
    (tmp_path / "file").write_bytes(b"\xef\xbb\xbfabc")
    assert read_text(tmp_path / "file", 6) == "abc"
    with pytest.raises(ValueError, match="more than 5 bytes"):
        read_text(tmp_path / "file", 5)


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/x",
        "S3A://bucket",
        "s3:/bucket/x",
        " gs://bucket",
        "hdfs://name:8020/x",
        "abfss://c@a.dfs.core.windows.net/x",
        "https://example.org/x",
        "dbfs:/mnt/x",
        "file:///srv/x",
    ],
)
def test_a_url_is_no_path(text):
    with pytest.raises(UsageError, match="is a URL") as error:
        refuse_url(text, "--to")
    assert "--to" in error.value.message and error.value.hint


def test_the_hint_for_a_file_url_is_its_path():
    for url in ("file:///srv/x", "file:/srv/x", "file://localhost/srv/x"):
        with pytest.raises(UsageError) as error:
            refuse_url(url, "lake.folder")
        assert error.value.hint.endswith(": /srv/x")


@pytest.mark.parametrize(
    "text", ["", "x", "/srv/s3:", "a b/c", "./s3:/x", "10:30/x", "x:y", "[1]*, #%", "{state_folder}/x"]
)
def test_other_paths_are_taken_as_they_are(text):
    refuse_url(text, "--to")
