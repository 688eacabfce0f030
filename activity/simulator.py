"""Simulated activity with the skew of real users: a few users do most, a few items get most, and it comes in sessions.

User activity and item popularity follow Zipf laws. Within a session a user stays on one surface and mostly with the
items of one taste, so a sequence model can learn from it. The same settings always give the same events.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from spoor.activity.events import EVENT_SCHEMA
from spoor.base.errors import UsageError
from spoor.base.times import iso_text

# Limits: users, items and slices of events are held in memory.
_RANGES = (
    ("users", 1, 100_000_000),
    ("items", 1, 100_000_000),
    ("tastes", 1, 1_000_000),
    ("events", 0, 10_000_000_000),
    ("seed", 0, 2**63 - 1),
)
_SLICE_EVENTS = 100_000  # events made at once: memory does not grow with the simulation
_OWN_TASTE = 0.7  # share of events on items of the session's taste


@dataclass(frozen=True)
class SimulatorSettings:
    events: int  # how many to make
    from_ms: int  # first moment, ms since 1970 UTC
    to_ms: int  # moment after the last
    seed: int = 0
    users: int = 1_000
    items: int = 2_000
    tastes: int = 20  # groups of items; each user has two
    actions: tuple[str, ...] = ("view", "click", "save", "hide")  # from the most to the least frequent
    surfaces: tuple[str, ...] = ("home", "search", "related")
    user_exponent: float = 0.8  # of the Zipf law of users' activity; 0 = all alike
    item_exponent: float = 1.0  # of the Zipf law of items' popularity
    session_events: float = 8.0  # mean events of a session
    pause_seconds: float = 20.0  # mean time between two events of a session

    def __post_init__(self) -> None:
        for name, least, most in _RANGES:
            if not least <= (value := getattr(self, name)) <= most:
                way_out = f"{least} or more" if value < least else f"{most} or less"
                raise UsageError(f"{name} is {value}, expected {way_out}", hint=f"give --{name} {way_out}")
        if self.to_ms <= self.from_ms:
            raise UsageError(
                f"the time range is empty: from {iso_text(self.from_ms)} to {iso_text(self.to_ms)}",
                hint="--from must be before --to; where one is left out, the range is the day up to now",
            )


def simulate(settings: SimulatorSettings) -> Iterator[pa.Table]:
    """Tables of EVENT_SCHEMA, oldest first within and across tables. Ids are decimal numbers as text, valid for a user
    entity of either type."""
    world = _World(settings)
    slices = max(1, -(-settings.events // _SLICE_EVENTS))
    edges = np.linspace(settings.from_ms, settings.to_ms, slices + 1).astype(np.int64)
    counts = np.diff(np.linspace(0, settings.events, slices + 1).astype(np.int64))
    seeds = np.random.SeedSequence(settings.seed).spawn(slices + 1)[1:]
    for count, start, end, seed in zip(counts, edges[:-1], edges[1:], seeds, strict=True):
        if count:
            yield world.events(int(count), int(start), int(end), np.random.default_rng(seed))


class _World:
    """The activity of users, the popularity of items and the tastes, drawn once from the seed."""

    def __init__(self, settings: SimulatorSettings) -> None:
        self.settings = settings
        rng = np.random.default_rng(np.random.SeedSequence(settings.seed).spawn(1)[0])
        self.user_shares = rng.permutation(_zipf(settings.users, settings.user_exponent))
        self.item_shares = rng.permutation(_zipf(settings.items, settings.item_exponent))
        tastes = min(settings.tastes, settings.items)
        self.items_by_taste = np.array_split(rng.permutation(settings.items), tastes)
        self.user_tastes = rng.integers(0, tastes, (settings.users, 2))

    def events(self, count: int, start_ms: int, end_ms: int, rng: np.random.Generator) -> pa.Table:
        settings = self.settings
        lengths = _session_lengths(count, settings.session_events, rng)
        sessions = len(lengths)
        session = np.repeat(np.arange(sessions), lengths)
        session_users = rng.choice(settings.users, sessions, p=self.user_shares)
        session_tastes = self.user_tastes[session_users, rng.integers(0, 2, sessions)]
        session_surfaces = rng.integers(0, len(settings.surfaces), sessions)
        offsets = _within_sessions(rng.exponential(settings.pause_seconds * 1000, count), lengths)
        span = end_ms - start_ms
        # A session that passes the end continues at the start of the range, so every time is within the range.
        times = start_ms + (rng.integers(0, span, sessions)[session] + offsets.astype(np.int64)) % span
        actions = rng.choice(len(settings.actions), count, p=_zipf(len(settings.actions), 1.5))
        columns = [
            _numbers(session_users[session]),
            _numbers(self._items(session_tastes[session], rng)),
            _names(settings.actions, actions),
            _names(settings.surfaces, session_surfaces[session]),
            pa.array(times, pa.int64()),
        ]
        order = np.argsort(times, kind="stable")
        return pa.table(columns, schema=EVENT_SCHEMA).take(order)

    def _items(self, tastes: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
        chosen = rng.choice(self.settings.items, len(tastes), p=self.item_shares)
        own = rng.random(len(tastes)) < _OWN_TASTE
        for taste, members in enumerate(self.items_by_taste):
            rows = np.flatnonzero(own & (tastes == taste))
            shares = self.item_shares[members]
            chosen[rows] = rng.choice(members, len(rows), p=shares / shares.sum())
        return chosen


def _zipf(count: int, exponent: float) -> npt.NDArray[np.float64]:
    weights = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    return weights / weights.sum()


def _session_lengths(count: int, mean: float, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Lengths of at least 1 that sum to `count`."""
    lengths = rng.geometric(1 / max(mean, 1.0), count)  # enough: each session has at least one event
    ends = np.cumsum(lengths)
    last = int(np.searchsorted(ends, count))
    lengths = lengths[: last + 1]
    lengths[-1] -= ends[last] - count
    return lengths


def _within_sessions(pauses: npt.NDArray[np.float64], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Time since the start of the session: the sum of the pauses before each event."""
    total = np.cumsum(pauses)
    starts = np.cumsum(lengths) - lengths
    return total - np.repeat(total[starts], lengths)


def _numbers(values: npt.NDArray[np.int64]) -> pa.Array:
    return pa.array(values + 1, pa.int64()).cast(pa.string())


def _names(names: tuple[str, ...], indexes: npt.NDArray[np.int64]) -> pa.Array:
    return pa.array(names, pa.string()).take(pa.array(indexes))
