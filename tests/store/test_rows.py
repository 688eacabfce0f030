"""An embedding row on its topic: documented JSON, exact floats."""

from __future__ import annotations

import json

import numpy as np
import pytest

from activity.errors import DataError
from store.rows import EMBEDDING_LOG_SCHEMA, EmbeddingRow, embedding_log_table, embedding_row_from_json
from store.rows import embedding_row_to_json as to_json

ROW = EmbeddingRow("ä", np.array([0.1, -0.2, 1e-9], np.float32), 2**60 + 1, 3, 1_700_000_000_123, 5, 6, "base-1")


def test_a_row_comes_back_exactly():
    again = embedding_row_from_json(to_json(ROW))
    assert again.embedding.tobytes() == ROW.embedding.tobytes() and again.embedding.dtype == np.float32
    for name in ("user_id", "revision", "events_used", "event_time_ms", "created_ms", "computed_at_ms"):
        assert getattr(again, name) == getattr(ROW, name)
    assert again.model_version == "base-1"


def test_the_json_has_the_documented_fields():
    assert list(json.loads(to_json(ROW))) == [
        "user_id", "embedding", "revision", "events_used", "event_time_ms", "created_ms", "computed_at_ms",
        "model_version",
    ]  # fmt: skip


@pytest.mark.parametrize("value", [b"", b"[]", b"{}", b"\xff", b'{"user_id": 1}', b"null"])
def test_anything_else_is_a_data_error(value):
    with pytest.raises(DataError, match="not an embedding row"):
        embedding_row_from_json(value)


@pytest.mark.parametrize(
    "field",
    [
        {"revision": 1e400},
        {"revision": 2**63},
        {"created_ms": 2**60},  # no time that Arrow can hold
        {"events_used": True},
        {"embedding": [[1.0]]},
        {"embedding": [0.5] * 300_000},  # more than a megabyte
    ],
    ids=str,
)
def test_what_would_break_a_table_later_is_a_data_error(field):
    with pytest.raises(DataError, match="not an embedding row"):
        embedding_row_from_json(json.dumps(json.loads(to_json(ROW)) | field).encode())


def test_nesting_without_end_is_a_data_error():
    with pytest.raises(DataError, match="RecursionError"):
        embedding_row_from_json(b"[" * 200_000)


def test_no_rows_make_an_empty_table():
    assert embedding_log_table([]).schema == EMBEDDING_LOG_SCHEMA
