"""A small Feast repo with everything that a ranker reads: existing features, user and item vectors of one release."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from spoor.activity.events import Event, events_table
from spoor.activity.lake import Lake
from spoor.base.files import atomic_write
from spoor.feature_repo.settings import FeatureSettings, IdType
from spoor.ranking.features.dataset import Request, candidate_parts
from spoor.ranking.features.existing_features import write_existing_features
from spoor.ranking.features.impressions import Impressions
from spoor.store.offline import open_offline
from spoor.store.online import open_online
from spoor.store.repo import apply, create_repo
from spoor.store.rows import EmbeddingRow, UserWrite

DAY = 86_400_000
START = 19_000 * DAY
TRAINED = START + 20 * DAY
RELEASE = "tiny-1"
DIMENSION = 4


@dataclass(frozen=True)
class World:
    features: FeatureSettings
    events: pa.Table
    items: tuple[str, ...]


def candidate_rows(requests: Sequence[Request], catalogue: Sequence[str], *, seed: int = 0) -> pd.DataFrame:
    """All pieces of `candidate_parts` at once."""
    [(_, rows)] = candidate_parts(requests, catalogue, rows_at_once=len(requests) * len(catalogue), seed=seed)
    return frame_of(rows)


def frame_of(rows: Impressions, *, first: int = 0) -> pd.DataFrame:
    """Columns request, user_id, item_id, event_timestamp, label; `first`: the number of the first request."""
    return rows.frame().assign(request=rows.row_requests + first, label=rows.labels[:, 0])


def make_world(
    folder: Path, *, users: int = 12, items: int = 30, days: int = 40, user_id_type: IdType = "string"
) -> World:
    """Users like the items of one of two halves, a visit of three items every few days; a third of the users have no
    vector. Snapshots of the others lie at day 21 and day 30."""
    chance = np.random.default_rng(0)
    names = tuple(f"i{k:02d}" for k in range(items))
    events = []
    for user in range(users):
        unseen = list(chance.permutation([k for k in range(items) if k % 2 == user % 2]))
        for visit, day in enumerate(range(user % 5, days, 9)):
            for step in range(3):
                if unseen:
                    time = START + day * DAY + 36_000_000 + step * 1000 + user
                    action = "like" if step < 2 else "view"
                    events.append(
                        Event(user_name(user, user_id_type), names[unseen.pop()], action, f"s{visit % 2}", time)
                    )
    table = events_table(sorted(events, key=lambda event: event.timestamp))
    releases = folder / "releases"
    about = {"name": RELEASE, "dimension": DIMENSION, "trained_through_ms": TRAINED}
    atomic_write(releases / RELEASE / "release.json", json.dumps(about).encode())
    features = FeatureSettings(
        feature_repo=folder / "feature_repo",
        releases_folder=releases,
        offline_folder=folder / "state" / "offline",
        user_id_type=user_id_type,
    )
    atomic_write(folder / "spoor.toml", b'state_folder = "state"\n')
    create_repo(features.feature_repo, online_store={"type": "sqlite"}, state_folder=folder / "state")
    apply(features)
    _write_vectors(features, names, users)
    write_existing_features(_lake(folder / "state" / "lake", table), features, positive_actions=["like"])
    return World(features, table, names)


def vector(kind: int) -> np.ndarray:
    """Even and odd users and items point in two directions."""
    return np.eye(DIMENSION, dtype=np.float32)[kind % 2]


def user_name(user: int, user_id_type: IdType) -> str:
    return f"u{user:02d}" if user_id_type == "string" else str(100 + user)


def embedding_row(name: str, user: int, created_ms: int, event_time_ms: int) -> EmbeddingRow:
    return EmbeddingRow(name, vector(user), 1, 3, event_time_ms, created_ms, created_ms, RELEASE)


def _write_vectors(features: FeatureSettings, names: tuple[str, ...], users: int) -> None:
    online, offline = open_online(features), open_offline(features)
    item_vectors = np.stack([vector(k) for k in range(len(names))])
    offline.write_items(RELEASE, "items", names, item_vectors, TRAINED)
    online.write_items(RELEASE, names, item_vectors, TRAINED)
    known = [(user_name(user, features.user_id_type), user) for user in range(users) if user % 3]
    for day in (21, 30):
        rows = [embedding_row(*user, START + day * DAY, START + (day - 2) * DAY) for user in known]
        offline.write_embeddings(RELEASE, f"day-{day}", rows)
    newest = [embedding_row(*user, START + 30 * DAY, START + 28 * DAY) for user in known]
    done = online.write([UserWrite(r.user_id, 0, 1, b"packed", 3, r.event_time_ms, r.created_ms, [r]) for r in newest])
    assert done.all()


def _lake(folder: Path, events: pa.Table) -> Lake:
    lake, count = Lake(folder, buckets=2), len(events)
    for name, values in (
        ("partition", np.zeros(count, np.int32)),
        ("offset", np.arange(count, dtype=np.int64)),
        ("append_time", np.full(count, START + 50 * DAY)),
    ):
        events = events.append_column(name, pa.array(values))
    lake.write("0-0", events, {"partition": 0, "start": 0, "end": count})
    return lake
