"""Fine-tuning rows of a ranker: items shown to a user, grouped into requests, with the user's actions as labels.

An *impression* is a row: an item shown at a time. A *request* is up to `max_candidates` impressions of one visit. Its
history ends one millisecond before its first event, so its rows share one history revision, which is encoded once. An
action counts for the user's newest impression of the item at or before it, at most `attribution_hours` back. Actions
after the end of the window are ignored.

Legend: n impressions (rows of a request are adjacent), R requests, K tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from spoor.activity.history import slice_rows
from spoor.base.errors import DataError
from spoor.ranking.settings import ImpressionSettings

DAY_MS = 86_400_000
AGES_KNOWN_DAYS = 28  # days of log required before a window, so that the age of an item up to this is known

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Impressions:
    """`user_ids`, `surfaces` and `times_ms` int64 [R] of the requests, oldest first; `offsets` int64 [R + 1] into the
    rows; `item_ids` of the rows; `labels` float32 [n, K]; `ages_days` float32 [n]: since the item's first event."""

    user_ids: tuple[str, ...]
    surfaces: tuple[str, ...]
    times_ms: Int64s
    offsets: Int64s
    item_ids: tuple[str, ...]
    labels: npt.NDArray[np.float32]
    ages_days: npt.NDArray[np.float32]
    tasks: tuple[str, ...]

    @property
    def requests(self) -> int:
        return len(self.user_ids)

    @property
    def row_requests(self) -> Int64s:
        """int64 [n]: the request of each row."""
        return np.repeat(np.arange(self.requests), np.diff(self.offsets))

    @property
    def candidates_per_history(self) -> float:
        """The paper's r: rows per encoded history."""
        return len(self.item_ids) / max(self.requests, 1)

    def frame(self) -> pd.DataFrame:
        """user_id, item_id and event_timestamp of every row: the entity rows of a point-in-time read."""
        where = self.row_requests
        return pd.DataFrame(
            {
                "user_id": np.array(self.user_ids, object)[where],
                "item_id": list(self.item_ids),
                "event_timestamp": pd.to_datetime(self.times_ms[where], unit="ms", utc=True),
            }
        )

    def take(self, requests: Int64s) -> Impressions:
        """The given requests, in the given order."""
        rows, offsets = slice_rows(self.offsets[requests], np.diff(self.offsets)[requests])
        return Impressions(
            user_ids=tuple(self.user_ids[k] for k in requests),
            surfaces=tuple(self.surfaces[k] for k in requests),
            times_ms=self.times_ms[requests],
            offsets=offsets,
            item_ids=tuple(self.item_ids[k] for k in rows),
            labels=self.labels[rows],
            ages_days=self.ages_days[rows],
            tasks=self.tasks,
        )

    def sample(self, most_rows: int, *, seed: int) -> Impressions:
        """All requests if they have at most `most_rows` rows, else a random sample of whole requests that does (at
        least one), oldest first."""
        if len(self.item_ids) <= most_rows:
            return self
        return self.take(sample_positions(np.diff(self.offsets), most_rows=most_rows, seed=seed))

    def between(self, from_ms: int, to_ms: int) -> Impressions:
        """The requests of [from_ms, to_ms). Labels still count actions of the whole window."""
        return self.take(np.flatnonzero((self.times_ms >= from_ms) & (self.times_ms < to_ms)))


def find_impressions(events: pa.Table, settings: ImpressionSettings, *, from_ms: int, to_ms: int) -> Impressions:
    """The impressions of [from_ms, to_ms). Earlier `events` give the first event of each item.

    Raises DataError when the window holds no impression.
    """
    frame = events.select(["user_id", "item_id", "action", "surface", "timestamp"]).to_pandas()
    births: dict[str, int] = frame.groupby("item_id")["timestamp"].min().to_dict()
    inside = frame[(frame["timestamp"] >= from_ms) & (frame["timestamp"] < to_ms)]
    # At equal times, impressions come first: an action also counts for an impression at its own time.
    later = ~inside["action"].isin(settings.shown) if settings.shown else False
    inside = inside.assign(later=later).sort_values(["user_id", "timestamp", "later"], kind="stable")
    rows: list[_Request] = []
    for user_id, mine in inside.groupby("user_id", sort=True):
        rows += _user_requests(str(user_id), mine, settings)
    if not rows:
        raise DataError(
            f"no impression between {from_ms} and {to_ms} ms", hint="check the window and which actions show an item"
        )
    rows.sort(key=lambda request: (request.time_ms, request.user_id))
    lengths = [len(request.items) for request in rows]
    items = [item for request in rows for item in request.items]
    times = np.array([request.time_ms for request in rows], np.int64)
    born = np.array([births[item] for item in items], np.int64)
    labels = np.zeros((len(items), len(settings.tasks)), np.float32)
    wanted = {action: task for task, action in enumerate(settings.positive, 1)}
    for row, actions in enumerate(found for request in rows for found in request.actions):
        for action in actions:
            labels[row, [0, wanted[action]]] = 1.0
    return Impressions(
        user_ids=tuple(request.user_id for request in rows),
        surfaces=tuple(request.surface for request in rows),
        times_ms=times,
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        item_ids=tuple(items),
        labels=labels,
        ages_days=(np.maximum(np.repeat(times, lengths) - born, 0) / DAY_MS).astype(np.float32),
        tasks=settings.tasks,
    )


def window_times(events: pa.Table, *, pretrain_share: float = 0.6, tune_share: float = 0.2) -> tuple[int, int, int]:
    """(t0, t1, end) in ms, by shares of the events: pretraining before t0, fine-tuning before t1, test before end.

    Raises DataError if t0 is less than 28 days after the first event: item ages would be unknown.
    """
    times = np.sort(events["timestamp"].to_numpy())
    if not len(times):
        raise DataError("there are no events", hint="check the file")
    t0, t1 = (int(times[int(share * len(times))]) for share in (pretrain_share, pretrain_share + tune_share))
    if t0 - int(times[0]) < AGES_KNOWN_DAYS * DAY_MS:
        raise DataError(
            f"only {(t0 - int(times[0])) / DAY_MS:.0f} days lie before the fine-tuning window, "
            f"expected {AGES_KNOWN_DAYS}",
            hint="items of the first days have no known age: use a longer log",
        )
    return t0, t1, int(times[-1]) + 1


def sample_positions(rows: Int64s, *, most_rows: int, seed: int) -> Int64s:
    """`rows` int64[n]: rows of each request. All positions if the sum is at most `most_rows`, else a random sample
    whose sum is (at least one position), ascending."""
    if rows.sum() <= most_rows:
        return np.arange(len(rows))
    order = np.random.default_rng(seed).permutation(len(rows))
    kept = int(np.searchsorted(np.cumsum(rows[order]), most_rows, side="right"))
    return np.sort(order[: max(kept, 1)])


@dataclass
class _Request:
    user_id: str
    surface: str
    time_ms: int
    items: list[str]
    actions: list[set[str]]  # positive actions per item


def _user_requests(user_id: str, events: pd.DataFrame, settings: ImpressionSettings) -> list[_Request]:
    """The requests of one user, from the user's events in order."""
    times: list[int] = events["timestamp"].tolist()
    shown, positive = set(settings.shown), set(settings.positive)
    pause, reach = settings.gap_minutes * 60_000, settings.attribution_hours * 3_600_000
    found: list[_Request] = []
    newest: dict[str, tuple[int, set[str]]] = {}  # item → time and actions of its newest impression
    pauses = [True, *(later - earlier >= pause for earlier, later in pairwise(times))]
    columns = (events[name].tolist() for name in ("item_id", "action", "surface"))
    for item, action, surface, time, paused in zip(*columns, times, pauses, strict=True):
        visit_ended = paused or not found
        if not shown or action in shown:
            # Events with equal times stay in one request: a history cannot end between them.
            full = found and len(found[-1].items) >= settings.max_candidates and time > found[-1].time_ms + 1
            if visit_ended or full:
                found.append(_Request(user_id, surface, time - 1, [], []))
            if item not in found[-1].items:
                found[-1].items.append(item)
                found[-1].actions.append(set())
                newest[item] = (time, found[-1].actions[-1])
        elif paused and found:
            found.append(_Request(user_id, surface, time - 1, [], []))  # the visit began with another action
        if action in positive and item in newest and time - newest[item][0] <= reach:
            newest[item][1].add(action)
    return [request for request in found if request.items]
