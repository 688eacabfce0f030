"""A small shop whose users look at items and like those of their own kind: readers without Feast, a release."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from spoor.activity.events import Event, events_table
from spoor.activity.history import group_events, history_values
from spoor.activity.packing import pack
from spoor.encoder.release.folder import Release, load_release
from spoor.ranking.features.attributes import AttributeLayout
from spoor.ranking.features.dataset import ITEM_COLUMNS, ITEM_VECTOR, ROW, USER_COLUMNS, USER_VECTOR
from spoor.ranking.features.impressions import Impressions, find_impressions
from spoor.ranking.ranker.rows import HistoryReader, RankingData, read_rows
from spoor.ranking.settings import ImpressionSettings
from tests.releases import save_untrained_release

DAY = 86_400_000
START = 19_000 * DAY
T0, T1, END = START + 40 * DAY, START + 60 * DAY, START + 80 * DAY
SETTINGS = ImpressionSettings(positive=("like", "save"), shown=("view",), max_candidates=6)
DIMENSION = 16


@dataclass(frozen=True)
class Shop:
    events: pa.Table
    items: pa.Table  # attributes
    release: Release  # untrained, knows what was there before T0

    @property
    def before_t0(self) -> list[str]:
        return sorted(set(before(self.events, T0)["item_id"].to_pylist()))

    def impressions(self, from_ms: int = T0, to_ms: int = T1) -> Impressions:
        return find_impressions(before(self.events, to_ms), SETTINGS, from_ms=from_ms, to_ms=to_ms)

    def data(self, from_ms: int = T0, to_ms: int = T1, *, read: HistoryReader | None = None) -> RankingData:
        return read_rows(
            self.impressions(from_ms, to_ms),
            read_features,
            read or (lambda rows: read_histories(self.events, rows)),
            items=self.items,
            layout=AttributeLayout.of(self.items, known=self.before_t0),
            dimension=DIMENSION,
        )


def before(events: pa.Table, time_ms: int) -> pa.Table:
    return events.filter(pa.compute.less(events["timestamp"], time_ms))


def without(events: pa.Table, user_id: str) -> pa.Table:
    return events.filter(pa.compute.not_equal(events["user_id"], user_id))


def make_shop(folder: Path, *, users: int = 20, items: int = 40) -> Shop:
    """Users and items are of two kinds; a new item appears every other day; visits of four views every few days."""
    chance = np.random.default_rng(0)
    born = {f"i{k:02d}": 0 if k < items // 2 else 4 * (k - items // 2) for k in range(items)}
    events = []
    for user in range(users):
        for day in range(user % 4, 80, 4):
            there = [item for item, first in born.items() if first <= day]
            time = START + day * DAY + user * 1000
            for step, place in enumerate(chance.choice(len(there), 4, replace=False)):
                item, at = there[place], time + step * 60_000
                events.append(Event(f"u{user:02d}", item, "view", "app", at))
                if int(item[1:]) % 2 == user % 2:
                    events.append(Event(f"u{user:02d}", item, "like" if step % 2 else "save", "app", at + 5_000))
    table = events_table(sorted(events, key=lambda event: event.timestamp))
    known = sorted(set(before(table, T0)["item_id"].to_pylist()))
    save_untrained_release(folder / "shop-1", items=known, actions=["view", "like", "save"], surfaces=["app"])
    attributes = pa.table(
        {
            "item_id": list(born),
            "kind": ["odd" if int(item[1:]) % 2 else "even" for item in born],
            "first_seen": [START + day * DAY for day in born.values()],
        }
    )
    return Shop(table, attributes, load_release(folder / "shop-1"))


def read_features(rows: pd.DataFrame) -> pa.Table:
    """Counts that tell nothing; every third user has a vector."""
    count = len(rows)
    columns: dict[str, object] = {name: np.ones(count) for name in (*USER_COLUMNS, *ITEM_COLUMNS)}
    vector = [[1.0] * DIMENSION if int(user[1:]) % 3 == 0 else None for user in rows["user_id"]]
    columns[USER_VECTOR] = pa.array(vector, pa.list_(pa.float32()))
    columns[ITEM_VECTOR] = pa.array([[0.5] * DIMENSION] * count, pa.list_(pa.float32()))
    return pa.table(columns | {ROW: rows[ROW].to_numpy()})


def read_histories(events: pa.Table, rows: pd.DataFrame) -> pa.Table:
    """What had happened at each row's time, as it lies in the feature store: revision = number of events."""
    packed, revisions = [], []
    for user, time in zip(rows["user_id"], rows["event_timestamp"], strict=True):
        mine = events.filter(
            pa.compute.and_(
                pa.compute.equal(events["user_id"], user),
                pa.compute.less_equal(events["timestamp"], int(time.timestamp() * 1000)),
            )
        )
        if len(mine):
            _, histories = group_events(mine["user_id"].to_pylist(), history_values(mine), max_events=256)
            packed.append(pack(histories)[0])
            revisions.append(len(mine))
        else:
            packed.append(None)
            revisions.append(None)
    return pa.table(
        {
            "history": pa.array(packed, pa.binary()),
            "revision": pa.array(revisions, pa.int64()),
            ROW: rows[ROW].to_numpy(),
        }
    )
