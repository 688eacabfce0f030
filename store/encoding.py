"""The embeddings of some users of a batch: whose are behind their histories, and what the encoders compute for them.

An encoder may fail without holding up histories or other releases: its embeddings wait for the sweep.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from spoor.activity.history import Histories
from spoor.base.errors import DataError, InfrastructureError, SpoorError
from spoor.store.rows import EmbeddingRow, StoredUser, bad_vectors

_log = logging.getLogger(__name__)
Bools = npt.NDArray[np.bool_]
Int64s = npt.NDArray[np.int64]


class Encoder(Protocol):
    """A frozen model of one release."""

    @property
    def release(self) -> str: ...
    @property
    def dimension(self) -> int: ...
    @property
    def max_events(self) -> int: ...
    @property
    def trained_through_ms(self) -> int: ...

    def encode(self, histories: Histories) -> tuple[npt.NDArray[np.float32], Int64s]:
        """float32[U, d] of norm 1 (zeros without usable events), int64[U] events used."""
        ...


@dataclass(eq=False)
class Part:
    """Some users of a batch on their way into the store. All but `positions` hold one entry per user of these."""

    positions: Int64s  # in the batch
    users: list[str]
    stored: list[StoredUser]
    from_cache: Bools
    histories: Histories
    packed: list[bytes]
    changed: Bools
    forgets: Bools
    as_of_ms: Int64s
    expected: Int64s  # the stored revisions
    revisions: Int64s  # after this write
    rows: dict[str, list[EmbeddingRow | None]] = field(default_factory=dict)  # by release; None: no embedding
    failures: int = 0  # embeddings that could not be computed


def encode(part: Part, encoders: Sequence[Encoder], wanted: Bools, now_ms: Callable[[], int]) -> Part:
    """Adds the embeddings of every release that are not of their history's revision, of the users `wanted` that have
    events."""
    for encoder in encoders:
        have = np.array([user.embedding_revisions[encoder.release] or 0 for user in part.stored], np.int64)
        who = np.flatnonzero((have != part.revisions) & (part.histories.lengths > 0) & wanted)
        rows = part.rows[encoder.release] = [None] * len(part.users)
        for k, row in zip(who, _encoded(encoder, part, who, now_ms), strict=True):
            rows[k] = row
            part.failures += row is None
    return part


def _encoded(encoder: Encoder, part: Part, who: Int64s, now_ms: Callable[[], int]) -> list[EmbeddingRow | None]:
    """One per position in `who`, None for those that are not to be stored; for all where the encoder fails."""
    if len(who) == 0:
        return []
    release = encoder.release
    try:
        vectors, used = encoder.encode(part.histories.take(who))
    except InfrastructureError:
        raise
    except Exception as error:  # whatever a model may raise must not hold up histories and other releases
        _log.debug("encoding failed", exc_info=error)
        why = error.message if isinstance(error, SpoorError) else f"{type(error).__name__}: {error}"
        _wait_for_the_sweep(release, len(who), why)
        return [None] * len(who)
    if vectors.shape != (len(who), encoder.dimension):
        raise wrong_dimension(release, vectors.shape[-1], encoder.dimension)
    bad = bad_vectors(vectors, used)
    if bad.any():
        first = part.users[int(who[bad][0])]
        _wait_for_the_sweep(release, int(bad.sum()), f"not finite or not of norm 1, first for user {first!r}")
    computed_at, times = now_ms(), part.histories.last_times()
    return [
        None
        if bad[n]
        else EmbeddingRow(
            user_id=part.users[k],
            embedding=vectors[n],
            revision=int(part.revisions[k]),
            events_used=int(used[n]),
            event_time_ms=int(times[k]),
            created_ms=max(int(part.as_of_ms[k]), encoder.trained_through_ms),
            computed_at_ms=computed_at,
            model_version=release,
        )
        for n, k in enumerate(who)
    ]


def _wait_for_the_sweep(release: str, count: int, why: str) -> None:
    _log.error("release %s: %d embeddings wait for the sweep: %s", release, count, why)


def wrong_dimension(release: str, found: int, expected: int) -> DataError:
    return DataError(
        f"release `{release}` computes embeddings of dimension {found}, its view in Feast holds {expected}",
        hint="check the release folder, then apply the definitions again",
    )
