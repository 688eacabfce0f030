"""`spoor show user`: what is stored about one user, in words where names are known.

A stored history holds hashes. Items get their ids back from the releases' item lists, actions and surfaces from the
configured names; what neither knows is shown as its hash.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from activity.hashing import hash_name
from activity.packing import unpack
from feature_repo.releases import live_releases
from spoor.config import Settings


@dataclass(frozen=True)
class ShownEvent:
    timestamp: int  # ms since 1970 UTC
    item: str
    action: str
    surface: str


@dataclass(frozen=True)
class ShownEmbedding:
    release: str
    dimension: int
    norm: float
    revision: int
    behind: int  # revisions of the history that this embedding has not seen
    events_used: int
    event_time_ms: int  # time of the last event used
    created_ms: int  # from when on it could honestly be known
    computed_at_ms: int  # wall clock
    age_seconds: float  # since it was computed


@dataclass(frozen=True)
class ShownUser:
    user_id: str
    found: bool  # whether there is a history
    revision: int  # 0: none
    events: list[ShownEvent]  # newest first
    embeddings: list[ShownEmbedding]


def show_user(settings: Settings, user_id: str) -> ShownUser:
    """Raises UsageError where Feast is not set up, InfrastructureError where the store does not answer."""
    from store.online import open_online

    releases = [release.name for release in live_releases(settings.features.releases_folder)]
    online = open_online(settings.features)
    stored = online.read([user_id], [])[0]
    found = [(release, online.read_embeddings(release, [user_id])[0]) for release in releases]
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
        )
        for release, row in found
        if row is not None
    ]
    events = [] if stored.history is None else _events(settings, stored.history, releases)
    return ShownUser(user_id, stored.history is not None, stored.revision, events, embeddings)


def item_names(releases_folder: Path, releases: list[str]) -> dict[int, str]:
    """Hash → raw id of every item that some of the releases knows."""
    names: dict[int, str] = {}
    for release in releases:
        table = pq.read_table(releases_folder / release / "items.parquet")
        names.update(zip(table["hash"].to_pylist(), table["item_id"].to_pylist(), strict=True))
    return names


def _events(settings: Settings, packed: bytes, releases: list[str]) -> list[ShownEvent]:
    items = item_names(settings.features.releases_folder, releases)
    actions = {hash_name(name): name for name in settings.events.actions}
    surfaces = {hash_name(name): name for name in settings.events.surfaces}
    history = unpack([packed])[0]
    return [
        ShownEvent(
            timestamp=int(event["timestamp"]),
            item=_name(items, int(event["item"]), 16),
            action=_name(actions, int(event["action"]), 4),
            surface=_name(surfaces, int(event["surface"]), 4),
        )
        for event in history[::-1]
    ]


def _name(names: Mapping[int, str], value: int, digits: int) -> str:
    return names.get(value, f"#{value:0{digits}x}")
