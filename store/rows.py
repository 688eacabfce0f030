"""What goes into the store and comes out of it, how an embedding row looks on its topic and in the offline log, and
what a vector must be before it is stored: of the release's dimension, finite, of norm 1.

An embedding row on the topic `user-embeddings.<release>` is keyed by the user id (a record without value: the user has
no embedding any more). Its value is one JSON object in UTF-8, or one row of EMBEDDING_SCHEMA as an Arrow IPC stream,
which carries its schema; a topic may hold both:

    user_id         string
    embedding       array of float32, exact in JSON too
    revision        of the history that the embedding was computed from; grows with every change
    events_used     events of the history that the model knew
    event_time_ms   time of the history's last event
    created_ms      from when on the row could be known: the later of as-of time and the model's trained-through time
    computed_at_ms  wall clock of the computation
    model_version   the release

All times are ms since 1970 UTC.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from spoor.activity.packing import holds_events
from spoor.base.errors import DataError
from spoor.base.numbers import number_text
from spoor.broker.settings import EmbeddingFormat

_NORM_TOLERANCE = 1e-3
_MOST_BYTES = 1 << 20  # of a row as JSON: room for a vector of 40,000 floats
_INT64 = 2**63 - 1
_MOST_MS = 62_135_596_800_000  # before and after 1970: the years 1, where dates begin, to 3938
Vector = npt.NDArray[np.float32]
Version = tuple[int, int]  # revision and computed_at_ms: what tells an embedding row from another one of its user
_ARROW_START = b"\xff\xff\xff\xff"  # of every message of Arrow IPC; no text in UTF-8 has such a byte
TIME_FIELDS = [
    pa.field("event_timestamp", pa.timestamp("us", "UTC"), nullable=False),
    pa.field("created_timestamp", pa.timestamp("us", "UTC"), nullable=False),
]
EMBEDDING_NUMBERS = ("revision", "events_used", "event_time_ms", "created_ms", "computed_at_ms")
HISTORY_NUMBERS = ("revision", "events", "event_time_ms", "as_of_ms")
EMBEDDING_SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("embedding", pa.list_(pa.float32()), nullable=False),
        *(pa.field(name, pa.int64(), nullable=False) for name in EMBEDDING_NUMBERS),
        pa.field("model_version", pa.string(), nullable=False),
    ]
)
EMBEDDING_LOG_SCHEMA = pa.schema([*EMBEDDING_SCHEMA, *TIME_FIELDS])
HISTORY_LOG_SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("history", pa.binary(), nullable=False),
        *(pa.field(name, pa.int64(), nullable=False) for name in HISTORY_NUMBERS),
        *TIME_FIELDS,
    ]
)
ITEM_LOG_SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("item_embedding", pa.list_(pa.float32()), nullable=False),
        *TIME_FIELDS,
    ]
)


@dataclass(frozen=True)
class StoredUser:
    """What the store holds of one user, as far as a writer must know it."""

    history: bytes | None  # packed; None = no row
    revision: int  # 0 = no row
    embedding_revisions: dict[str, int | None]  # by live release; None = no embedding
    as_of_ms: int = 0  # from when on all events of the history were known
    unreadable_revision: bytes | None = None  # the value of a revision that cannot be read; `revision` is then 0

    @property
    def has_events(self) -> bool:
        """False without a row, for a forgotten user, whose history is a marker and nothing more, and for bytes without
        a header, which `spoor verify` reports."""
        try:
            return self.history is not None and holds_events(self.history)
        except DataError:
            return False


@dataclass(frozen=True, eq=False)
class EmbeddingRow:
    user_id: str
    embedding: Vector  # float32[d], norm 1, or zeros if events_used is 0
    revision: int
    events_used: int
    event_time_ms: int
    created_ms: int
    computed_at_ms: int
    model_version: str


@dataclass(frozen=True, eq=False)
class UserWrite:
    """One user's rows, to be written together if the history still has `expected_revision`.

    `revision` equal to `expected_revision` writes the embeddings alone. `as_of_ms`: from when on all events of the
    history were known. `embeddings` carry `revision`. `forgets`: the user's rows in all other views of Spoor, of every
    release, go in the same step.
    """

    user_id: str
    expected_revision: int  # 0 = there must be no row
    revision: int
    history: bytes
    events: int  # number of events in the history
    event_time_ms: int
    as_of_ms: int
    embeddings: list[EmbeddingRow]
    forgets: bool = False
    unreadable_revision: bytes | None = None  # of the row to be replaced, in the place of `expected_revision`


@dataclass(frozen=True)
class NoEmbedding:
    """In the place of the row of a user who has none any more: on the topic, a record without value."""

    user_id: str


def record_value(row: EmbeddingRow | NoEmbedding, form: EmbeddingFormat) -> bytes | None:
    """The value of the row's record on its topic."""
    if isinstance(row, NoEmbedding):
        return None
    return embedding_row_to_json(row) if form == "json" else embedding_row_to_arrow(row)


def embedding_row_to_json(row: EmbeddingRow) -> bytes:
    content = {name: getattr(row, name) for name in EMBEDDING_SCHEMA.names}
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)  # float32 in its shortest exact form


def embedding_row_to_arrow(row: EmbeddingRow) -> bytes:
    batch = pa.record_batch([[getattr(row, name)] for name in EMBEDDING_SCHEMA.names], schema=EMBEDDING_SCHEMA)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, EMBEDDING_SCHEMA) as stream:
        stream.write_batch(batch)
    return sink.getvalue().to_pybytes()


def embedding_row_from_record(value: bytes) -> EmbeddingRow:
    """The reverse of `record_value` in either form. Raises DataError if `value` is neither: anybody who may produce to
    the topic may have written it."""
    if len(value) > _MOST_BYTES:
        raise DataError(f"not an embedding row: {len(value):,} bytes, expected at most {_MOST_BYTES:,}")
    try:
        content = _from_arrow(value) if value.startswith(_ARROW_START) else orjson.loads(value)
        embedding = np.asarray(content["embedding"], np.float32)
        if embedding.ndim != 1:
            raise ValueError(f"an embedding of shape {embedding.shape}")
        return EmbeddingRow(
            user_id=str(content["user_id"]),
            embedding=embedding,
            revision=_whole(content["revision"], _INT64),
            events_used=_whole(content["events_used"], _INT64),
            event_time_ms=_whole(content["event_time_ms"], _MOST_MS),
            created_ms=_whole(content["created_ms"], _MOST_MS),
            computed_at_ms=_whole(content["computed_at_ms"], _MOST_MS),
            model_version=str(content["model_version"]),
        )
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError, OSError, pa.ArrowException) as error:
        raise DataError(f"not an embedding row: {type(error).__name__}: {error}") from None


def _whole(number: object, most: int) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or abs(number) > most:
        raise ValueError(f"{str(number)[:20]!r}, expected a whole number of at most {most}")
    return number


def _from_arrow(value: bytes) -> dict[str, Any]:
    with pa.ipc.open_stream(value) as stream:
        table = stream.read_all()
    table.validate(full=True)
    if len(table) != 1:  # before a row of it is made: a column of nulls may claim any number
        raise ValueError(f"{len(table):,} rows, expected 1")
    (row,) = table.to_pylist()
    return row


def embedding_log_table(rows: Sequence[EmbeddingRow]) -> pa.Table:
    """Rows of EMBEDDING_LOG_SCHEMA, in the given order."""
    lengths = np.fromiter((len(row.embedding) for row in rows), np.int32, count=len(rows))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    values = np.concatenate([np.empty(0, np.float32), *(row.embedding for row in rows)])
    columns: dict[str, Any] = _columns(rows, ("user_id", *EMBEDDING_NUMBERS, "model_version"))
    columns["embedding"] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, pa.float32()))
    columns["event_timestamp"] = times(columns["event_time_ms"])
    columns["created_timestamp"] = times(columns["created_ms"])
    return pa.table(columns, schema=EMBEDDING_LOG_SCHEMA)


def history_log_table(writes: Sequence[UserWrite]) -> pa.Table:
    """Rows of HISTORY_LOG_SCHEMA, in the given order."""
    columns: dict[str, Any] = _columns(writes, ("user_id", "history", *HISTORY_NUMBERS))
    columns["event_timestamp"] = times(columns["event_time_ms"])
    columns["created_timestamp"] = times(columns["as_of_ms"])
    return pa.table(columns, schema=HISTORY_LOG_SCHEMA)


def _columns(rows: Sequence[object], names: Sequence[str]) -> dict[str, list[Any]]:
    return {name: [getattr(row, name) for row in rows] for name in names}


def times(times_ms: Sequence[int]) -> pa.Array:
    """ms since 1970 UTC → Arrow timestamps that Feast joins on."""
    return pa.array(np.asarray(times_ms, np.int64) * 1000).cast(pa.timestamp("us", "UTC"))


def bad_vectors(vectors: npt.NDArray[np.float32], events_used: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """bool[n] of float32[n, d]: values that are not finite, or a norm that is not 1. Zeros are right exactly where no
    event was used."""
    norms = np.linalg.norm(np.asarray(vectors, np.float64), axis=1)  # not finite where a value is not
    none = (events_used == 0) & (norms == 0)
    return ~(none | (np.abs(norms - 1) <= _NORM_TOLERANCE))


def check_vectors(
    vectors: npt.NDArray[np.float32], events_used: npt.NDArray[np.int64], release: str, dimension: int
) -> None:
    """Raises DataError that names the first vector at fault."""
    if vectors.ndim != 2 or vectors.shape[1] != dimension:
        raise DataError(
            f"embeddings of release `{release}` have shape {vectors.shape}, expected (n, {dimension})",
            hint="apply the definitions of the release that computed them",
        )
    bad = bad_vectors(vectors, events_used)
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        norm = number_text(float(np.linalg.norm(vectors[first])))
        raise DataError(
            f"release `{release}` gave {int(bad.sum()):,} of {len(bad):,} embeddings that cannot be stored; row "
            f"{first} has norm {norm} from {int(events_used[first])} events, expected 1 (0 only without events)",
            hint=f"check the release with `spoor release show {release}`",
        )
