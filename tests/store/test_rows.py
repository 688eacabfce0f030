"""An embedding row on its topic: documented JSON or Arrow, exact floats in both."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from spoor.base.errors import DataError
from spoor.broker.settings import EmbeddingFormat
from spoor.store.rows import (
    EMBEDDING_LOG_SCHEMA,
    EMBEDDING_SCHEMA,
    EmbeddingRow,
    NoEmbedding,
    embedding_log_table,
    embedding_row_from_record,
    record_value,
)

ROW = EmbeddingRow("ä", np.array([0.1, -0.2, 1e-9], np.float32), 2**60 + 1, 3, 1_700_000_000_123, 5, 6, "base-1")


@pytest.mark.parametrize("form", ["json", "arrow"])
def test_a_row_comes_back_exactly(form: EmbeddingFormat):
    value = record_value(ROW, form)
    assert value is not None and value.startswith({"json": b"{", "arrow": b"\xff"}[form])
    again = embedding_row_from_record(value)
    assert again.embedding.tobytes() == ROW.embedding.tobytes() and again.embedding.dtype == np.float32
    for name in ("user_id", "revision", "events_used", "event_time_ms", "created_ms", "computed_at_ms"):
        assert getattr(again, name) == getattr(ROW, name)
    assert again.model_version == "base-1"


def test_both_forms_have_the_documented_fields():
    documented = [
        "user_id", "embedding", "revision", "events_used", "event_time_ms", "created_ms", "computed_at_ms",
        "model_version",
    ]  # fmt: skip
    assert list(json.loads(record_value(ROW, "json") or b"")) == documented
    assert pa.ipc.open_stream(record_value(ROW, "arrow")).schema == EMBEDDING_SCHEMA
    assert EMBEDDING_SCHEMA.names == documented


@pytest.mark.parametrize("form", ["json", "arrow"])
def test_a_user_without_an_embedding_has_no_value(form: EmbeddingFormat):
    assert record_value(NoEmbedding("ä"), form) is None


ARROW = record_value(ROW, "arrow") or b""
TWO_ROWS = pa.BufferOutputStream()
with pa.ipc.new_stream(TWO_ROWS, EMBEDDING_SCHEMA) as stream:
    stream.write_table(embedding_log_table([ROW, ROW]).select(EMBEDDING_SCHEMA.names))


@pytest.mark.parametrize(
    "value",
    [b"", b"[]", b"{}", b"\xff", b'{"user_id": 1}', b"null", ARROW[:4], ARROW[:600], TWO_ROWS.getvalue().to_pybytes()],
)
def test_anything_else_is_a_data_error(value):
    with pytest.raises(DataError, match="not an embedding row"):
        embedding_row_from_record(value)


@pytest.mark.parametrize(
    "field",
    [
        {"revision": 1e300},
        {"revision": 2**63},
        {"created_ms": 2**60},  # no time that Arrow can hold
        {"created_ms": 10**15},  # the year 33,658: no day can be named after it
        {"events_used": True},
        {"embedding": [[1.0]]},
        {"embedding": [0.5] * 300_000},  # more than a megabyte
    ],
    ids=lambda field: str(field)[:30],
)
def test_what_would_break_a_table_later_is_a_data_error(field):
    with pytest.raises(DataError, match="not an embedding row"):
        embedding_row_from_record(json.dumps(json.loads(record_value(ROW, "json") or b"") | field).encode())


def test_nesting_without_end_is_a_data_error():
    with pytest.raises(DataError, match="depth limit"):
        embedding_row_from_record(b"[" * 200_000)


def test_no_rows_make_an_empty_table():
    assert embedding_log_table([]).schema == EMBEDDING_LOG_SCHEMA
