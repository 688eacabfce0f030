"""`spoor show user`: shows a user's stored history and embeddings, and the items nearest to each embedding.

A stored history holds hashes. Item ids are looked up in the releases' item lists, actions and surfaces in the
configured names, and the rest in the user's events in the lake. Unknown names are shown as their hash and counted.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from spoor.activity.hashing import OLD_NAMES, buckets_of, hash_item, hash_names, old_names
from spoor.activity.history import NEVER, Histories, Values
from spoor.activity.lake import Lake
from spoor.activity.packing import read_forgotten_through, unpack
from spoor.config import Settings

if TYPE_CHECKING:
    from spoor.store.online import OnlineStore

_CHUNK_ITEMS = 10_000  # item vectors read at once


@dataclass(frozen=True)
class ShownEvent:
    timestamp: int  # ms since 1970 UTC
    item: str
    action: str
    surface: str


@dataclass(frozen=True)
class NearItem:
    item: str
    cosine: float  # between the stored vectors of user and item


@dataclass(frozen=True)
class ShownEmbedding:
    release: str
    dimension: int
    norm: float
    revision: int
    behind: int  # number of newer revisions of the history; 0 = fresh
    events_used: int
    event_time_ms: int  # time of the last event used
    created_ms: int  # time from which point-in-time reads see it
    computed_at_ms: int  # wall clock
    age_seconds: float  # since it was computed
    nearest: list[NearItem]  # nearest first; empty without item vectors in the store, or for a zero user vector


@dataclass(frozen=True)
class ShownUser:
    user_id: str
    found: bool  # whether there are events
    revision: int  # 0: none
    events: list[ShownEvent]  # newest first
    embeddings: list[ShownEmbedding]
    forgotten_through_ms: int | None = None  # cut-off: events up to this time are deleted
    unknown_names: int = 0  # distinct items, actions and surfaces shown as `#` and their hash


def show_user(settings: Settings, user_id: str, *, nearest: int = 5) -> ShownUser:
    """`nearest`: number of items. Raises UsageError if Feast is not set up, InfrastructureError if the store does not
    answer."""
    from spoor.store.feast_store import live_names
    from spoor.store.online import open_online

    releases = live_names(settings.features).usable
    online = open_online(settings.features)
    stored = online.read([user_id], [])[0]
    found = [(release, online.read_embeddings(release, [user_id])[0]) for release in releases]
    history = Histories.empty(1) if stored.history is None else unpack([stored.history])
    through = NEVER if stored.history is None else int(read_forgotten_through([stored.history])[0])
    items = _items(settings, releases) if len(history.values) else {}
    now_ms = time.time_ns() // 1_000_000
    embeddings = [
        ShownEmbedding(
            release=release,
            dimension=len(row.embedding),
            norm=round(float(np.linalg.norm(row.embedding)), 6),
            revision=row.revision,
            behind=stored.revision - row.revision,
            events_used=row.events_used,
            event_time_ms=row.event_time_ms,
            created_ms=row.created_ms,
            computed_at_ms=row.computed_at_ms,
            age_seconds=(now_ms - row.computed_at_ms) / 1000,
            nearest=nearest_items(online, release, row.embedding, items[release]["item_id"], count=nearest),
        )
        for release, row in found
        if row is not None and release in items
    ]
    events, unknown = _events(settings, user_id, history[0], items.values())
    forgotten = None if through == NEVER else through
    return ShownUser(user_id, bool(events), stored.revision, events, embeddings, forgotten, unknown)


def nearest_items(
    online: OnlineStore, release: str, vector: npt.NDArray[np.float32], item_ids: pa.ChunkedArray, *, count: int
) -> list[NearItem]:
    """The `count` items whose stored vectors have the largest cosine with `vector` float32[d]; ties by id. Reads item
    vectors in chunks, so memory does not grow with the catalogue."""
    best: list[tuple[float, str]] = []  # (-cosine, item), so that sorting puts the nearest first
    if count == 0 or not vector.any():
        return []
    unit = vector / np.linalg.norm(vector)
    for start in range(0, len(item_ids), _CHUNK_ITEMS):
        part = item_ids[start : start + _CHUNK_ITEMS].to_pylist()
        vectors, found = online.read_items(release, part)
        norms = np.linalg.norm(vectors, axis=1)
        cosines = vectors @ unit / np.where(norms > 0, norms, 1)
        best += [(-float(cosine), item) for cosine, item, here in zip(cosines, part, found, strict=True) if here]
        best = heapq.nsmallest(count, best)
    return [NearItem(item, round(-negative, 6)) for negative, item in best]


def _items(settings: Settings, releases: list[str]) -> dict[str, pa.Table]:
    """By release: the table of its items, with `item_id` and `hash`."""
    folder = settings.features.releases_folder
    return {release: pq.read_table(folder / release / "items.parquet") for release in releases}


def _events(
    settings: Settings, user_id: str, history: Values, tables: Iterable[pa.Table]
) -> tuple[list[ShownEvent], int]:
    """The events, newest first, and the number of distinct unknown names."""
    names: dict[str, dict[int, str]] = {
        "item": {},
        "action": _by_hash(settings.events.actions),
        "surface": _by_hash(settings.events.surfaces),
    }
    for table in tables:
        names["item"].update(zip(table["hash"].to_pylist(), table["item_id"].to_pylist(), strict=True))
    if _unknown(history, names):
        for column, found in _lake_names(settings, user_id).items():
            names[column] |= found
    events = [
        ShownEvent(
            timestamp=int(event["timestamp"]),
            **{column: names[column].get(int(event[column]), _hash(column, int(event[column]))) for column in names},
        )
        for event in history[::-1]
    ]
    return events, len(_unknown(history, names))


def _by_hash(names: Iterable[str]) -> dict[int, str]:
    """Names by their hash, and by their hash of version 1 if no other name has it."""
    distinct = list(dict.fromkeys(names))
    hashes = hash_names(distinct)
    old = old_names(hashes).tolist()
    held = Counter(old)
    by_old = {hashed: name for hashed, name in zip(old, distinct, strict=True) if held[hashed] == 1}
    return dict(zip(hashes.tolist(), distinct, strict=True)) | by_old


def _lake_names(settings: Settings, user_id: str) -> dict[str, dict[int, str]]:
    """By column: the names in the user's events in the lake, by hash."""
    if not settings.lake.folder.is_dir():
        return {}
    lake = Lake(settings.lake.folder, buckets=settings.lake.buckets)
    found: dict[str, set[str]] = {name: set() for name in ("item_id", "action", "surface")}
    bucket = int(buckets_of([user_id], lake.buckets)[0])
    for table in lake.batches(bucket=bucket, columns=["user_id", *found]):
        own = table.filter(pc.equal(table["user_id"], user_id))
        for column, names in found.items():
            names.update(pc.unique(own[column]).to_pylist())
    items = {hash_item(item): item for item in found["item_id"]}
    return {"item": items, "action": _by_hash(found["action"]), "surface": _by_hash(found["surface"])}


def _unknown(history: Values, names: Mapping[str, Mapping[int, str]]) -> set[tuple[str, int]]:
    return {
        (column, value)
        for column, known in names.items()
        for value in np.unique(history[column]).tolist()
        if value not in known
    }


def _hash(column: str, value: int) -> str:
    return f"#{value:04x}" if column != "item" and value < OLD_NAMES else f"#{value:016x}"
