"""A feature_store.yaml that cannot be read is named, and what is in it is not repeated: it holds a password."""

import pytest

from spoor.base.errors import UsageError
from spoor.feature_repo.settings import FeatureSettings
from spoor.store.feast_store import open_feature_store

GOOD = """\
project: spoor
provider: local
registry: registry.db
online_store: {type: redis, connection_string: "redis:6379,password=s3cret-word"}
offline_store: {type: duckdb}
entity_key_serialization_version: 3
"""


def error_of(folder, content: bytes) -> UsageError:
    (folder / "feature_store.yaml").write_bytes(content)
    with pytest.raises(UsageError, match="cannot read") as caught:
        open_feature_store(FeatureSettings(feature_repo=folder))
    assert str(folder / "feature_store.yaml") in caught.value.message
    assert "s3cret" not in caught.value.message + caught.value.hint
    assert caught.value.__suppress_context__  # nor does a traceback tell it
    return caught.value


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("project: spoor\n", "", "project: Field required"),
        ("connection_string:", "connection_sting:", "connection_sting"),
        ("type: redis,", "type: redis, redis_type: [7],", "redis_type"),
        ('word"}', 'word"', "line 5 is no YAML"),
        ("type: redis", "type: no.such.Store", "no.such"),
    ],
)
def test_the_place_is_told_and_the_password_is_not(tmp_path, before, after, told):
    assert before in GOOD
    assert told in error_of(tmp_path, GOOD.replace(before, after).encode()).message


def test_bytes_that_are_no_text_are_refused_too(tmp_path):
    error_of(tmp_path, b"project: \xff\xfe s3cret")
