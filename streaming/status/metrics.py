"""What a worker counts: its metrics, and the summary at its end.

Metrics (Prometheus, prefix spoor_stream_):
  records_total             records taken                decoded_events_total      records that became events
  events_total              events written               dead_letters_total        by reason
  mismatched_keys_total     key is not the user id       unknown_names_total       by field
  users_total               user rows handled            changed_users_total       whose history the batch changed
  cache_hits_total          histories found in memory    cache_misses_total        histories read from the store
  embedding_rows_total      by release: fresh rows       stale_rows_total          by release: behind the history
  refused_writes_total      merged and tried again       encode_failures_total     embedding left to the sweep
  republished_rows_total    another writer moved on      lost_events_total         deleted before they were read
  skipped_records_total     left to their new owner      retries_total             by step
  forgotten_events_total    a forgotten user's past      postponed_encodes_total   too soon after the last
  set_aside_users_total     history cannot be read
  partitions                assigned now                 waiting_users             whose embedding waits now
  paused                    1 while paused by order
  batch_records             histogram                    batch_users               histogram of different users
  freshness_seconds         append → in the store        step_seconds              by step: decoded, read, merged,
  lag_records               by partition, not committed                            encoded, written, dead-letters,
                                                         published, committed
They are served beside /healthz and /readyz (status_server.py) on stream.metrics_port.

Each worker has its own registry, so that two workers in one process (tests) do not share counters.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from spoor.streaming.records.core import DecodedBatch
from spoor.streaming.records.dead_letters import REASONS

if TYPE_CHECKING:
    from spoor.store.writer import UpdateResult

STEPS = ("decoded", "dead-letters", "store", "published", "committed")  # that are tried again when their server fails
FIELDS = ("action", "surface")
MOST_USERS = 1_000_000  # that are told apart, in about 80 MB
# Logarithmic bins of 5 % width from 1 ms to about 1 day: quantiles to 5 %, constant memory.
FRESHNESS_EDGES_MS: npt.NDArray[np.float64] = np.geomspace(1.0, 86_400_000.0, 376)


@dataclass(frozen=True)
class StreamSummary:
    """What one run of a worker did. Freshness: from the broker's append of an event to its row being in the store."""

    events: int  # decoded events whose users were written
    dead_letters: int
    batches: int
    users: int  # different users, counted up to MOST_USERS
    user_rows: int  # user rows handled, a user once per batch
    republished: int  # rows published again because another writer moved on meanwhile
    refused: int  # writes that had to be merged and tried again
    set_aside: int  # user rows not written, as the stored history cannot be read
    encode_failures: int
    forgotten_events: int  # from before their user was forgotten: left out
    mismatched_keys: int
    unknown_names: int
    lost_events: int  # offsets that retention deleted before the group read them
    seconds: float  # from joining the group to leaving it
    events_per_second: float  # over the time between the first and the last batch
    freshness_p50_ms: float | None  # None: no event was written
    freshness_p99_ms: float | None
    freshness_edges_ms: list[float] = field(default_factory=list)  # bins that hold anything, and their
    freshness_counts: list[int] = field(default_factory=list)  # counts: one fewer than edges


class Count:
    """A counter of one worker, exported to Prometheus. The total is kept here too: Feast switches prometheus_client to
    shared files when it is imported first, and then its counters go on where another worker's stood."""

    def __init__(
        self, name: str, text: str, registry: CollectorRegistry, label: str = "", values: Iterable[str] = ()
    ) -> None:
        self.total = 0
        self._counter = Counter(f"spoor_stream_{name}", text, [label] if label else [], registry=registry)
        self.expect(*values)

    def expect(self, *values: str) -> None:
        """Exports these values of the label at 0: Prometheus sees no increase in a counter that begins above."""
        for value in values:
            self._counter.labels(value)

    def add(self, count: int = 1, *labels: str) -> None:
        self.total += count
        (self._counter.labels(*labels) if labels else self._counter).inc(count)


class Freshness:
    """A histogram over FRESHNESS_EDGES_MS."""

    def __init__(self) -> None:
        self.counts = np.zeros(len(FRESHNESS_EDGES_MS) - 1, np.int64)

    def add(self, milliseconds: npt.NDArray[np.int64]) -> None:
        """Times outside the bins count in the outermost ones: clocks of broker and worker may differ a little."""
        inside = np.clip(milliseconds, FRESHNESS_EDGES_MS[0], FRESHNESS_EDGES_MS[-1] * (1 - 1e-9))
        self.counts += np.histogram(inside, FRESHNESS_EDGES_MS)[0]

    def quantile(self, q: float) -> float | None:
        """ms; the upper edge of the bin where the quantile lies. None if empty."""
        total = int(self.counts.sum())
        if not total:
            return None
        bin_index = int(np.searchsorted(np.cumsum(self.counts), q * total))
        return float(FRESHNESS_EDGES_MS[bin_index + 1])

    def bins(self) -> tuple[list[float], list[int]]:
        """(edges, counts) from the first to the last bin that holds anything."""
        used = np.flatnonzero(self.counts)
        if not len(used):
            return [], []
        first, last = used[0], used[-1] + 1
        return FRESHNESS_EDGES_MS[first : last + 1].round(3).tolist(), self.counts[first:last].tolist()


class FreshnessSeconds(Collector):
    """A Prometheus histogram that takes a batch at once."""

    LIMITS = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0, math.inf)

    def __init__(self) -> None:
        self._counts = np.zeros(len(self.LIMITS), np.int64)
        self._sum = 0.0

    def add(self, milliseconds: npt.NDArray[np.int64]) -> None:
        seconds = milliseconds / 1000
        self._counts += np.bincount(np.searchsorted(self.LIMITS, seconds), minlength=len(self.LIMITS))
        self._sum += float(seconds.sum())

    def collect(self) -> Iterator[Metric]:
        name, text = "spoor_stream_freshness_seconds", "broker append of an event to its row being in the store"
        buckets = [
            (floatToGoString(limit), int(count))
            for limit, count in zip(self.LIMITS, np.cumsum(self._counts), strict=True)
        ]
        yield HistogramMetricFamily(name, text, buckets=buckets, sum_value=self._sum)


class PartitionLag(Collector):
    """Records that wait, by partition, as they are when Prometheus asks: partitions that were given away go, which a
    gauge with labels cannot do where prometheus_client keeps its values in shared files."""

    def __init__(self, lag: Callable[[], Mapping[int, int]]) -> None:
        self._lag = lag

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily("spoor_stream_lag_records", "records not committed yet", labels=["partition"])
        for partition, records in sorted(self._lag().items()):
            family.add_metric([str(partition)], records)
        yield family


class StreamMetrics:
    """Counts of one worker, see the table above. `lag`: records that wait, by partition."""

    def __init__(self, lag: Callable[[], Mapping[int, int]] = dict) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(PartitionLag(lag))

        def counter(name: str, text: str, label: str = "", values: Iterable[str] = ()) -> Count:
            return Count(name, text, self.registry, label, values)

        self.records = counter("records", "records taken from the activity topic")
        self.decoded = counter("decoded_events", "records that became events")
        self.events = counter("events", "records that became events and were written")
        self.dead = counter("dead_letters", "records that became dead letters", "reason", REASONS)
        self.mismatched = counter("mismatched_keys", "events whose record key is not their user id")
        self.unknown = counter("unknown_names", "events with a name that is not configured", "field", FIELDS)
        self.users = counter("users", "user rows handled, a user once per batch")
        self.changed = counter("changed_users", "user rows whose history the batch changed")
        self.cache_hits = counter("cache_hits", "users whose history was in the worker's memory")
        self.cache_misses = counter("cache_misses", "users whose history was read from the store")
        self.rows = counter("embedding_rows", "embedding rows of handled users as fresh as the history", "release")
        self.stale_rows = counter("stale_rows", "handled users whose embedding is behind their history", "release")
        self.refused = counter("refused_writes", "writes refused because the revision had moved, then merged")
        self.set_aside = counter("set_aside_users", "user rows not written: the stored history cannot be read")
        self.encode_failures = counter("encode_failures", "histories that advanced without an embedding")
        self.postponed = counter(
            "postponed_encodes", "changed histories whose embedding waits: too soon after the last"
        )
        self.forgotten = counter("forgotten_events", "events from before their user was forgotten, left out")
        self.republished = counter("republished_rows", "rows published again: another writer had moved on")
        self.lost = counter("lost_events", "offsets deleted by retention before they were read")
        self.skipped = counter("skipped_records", "records taken before a rebalance and left to their new owner")
        self.retried = counter("retries", "tries that failed and were repeated", "step", STEPS)
        self.batch_size = Histogram(
            "spoor_stream_batch_records",
            "records per batch",
            buckets=(1, 3, 10, 30, 100, 300, 1000, 3000),
            registry=self.registry,
        )
        self.batch_users = Histogram(
            "spoor_stream_batch_users",
            "different users per batch",
            buckets=(1, 3, 10, 30, 100, 300, 1000, 3000),
            registry=self.registry,
        )
        self.step_seconds = Histogram(
            "spoor_stream_step_seconds",
            "time per step of a batch",
            ("step",),
            buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10),
            registry=self.registry,
        )
        self.freshness_seconds = FreshnessSeconds()
        self.registry.register(self.freshness_seconds)
        self.partitions = Gauge("spoor_stream_partitions", "partitions assigned", registry=self.registry)
        self.waiting = Gauge("spoor_stream_waiting_users", "users whose embedding waits", registry=self.registry)
        self.paused = Gauge("spoor_stream_paused", "1 while paused by order", registry=self.registry)
        self.freshness = Freshness()
        self.batches = 0
        self._seen: set[int] = set()  # hashes of user ids
        self._started = time.monotonic()
        self._first_batch: float | None = None
        self._last_batch: float | None = None
        self._steps: defaultdict[str, float] = defaultdict(float)  # of the batch that is being written, in seconds
        self._step_began = 0.0

    def start(self) -> None:
        """The worker joins its group now."""
        self._started = time.monotonic()

    def batch_started(self, records: int) -> None:
        self._first_batch = self._first_batch or time.monotonic()
        self.records.add(records)
        self.batch_size.observe(records)

    def batch_done(self) -> None:
        self.batches += 1
        self._last_batch = time.monotonic()

    def handled(self, users: Collection[str]) -> None:
        """The different users of a batch."""
        self.users.add(len(users))
        self.batch_users.observe(len(users))
        if len(self._seen) < MOST_USERS:
            self._seen.update(map(hash, users))

    def written(self, append_times_ms: npt.NDArray[np.int64], now_ms: int) -> None:
        """These events are readable now."""
        waited_ms = now_ms - append_times_ms
        self.events.add(len(waited_ms))
        self.freshness.add(waited_ms)
        self.freshness_seconds.add(waited_ms)

    def write_began(self) -> None:
        self._steps.clear()
        self._step_began = time.perf_counter()

    def step_ended(self, step: str) -> None:
        """A step of the writer, which it takes several times in a batch."""
        now = time.perf_counter()
        self._steps[step] += now - self._step_began
        self._step_began = now

    def write_ended(self) -> None:
        for step, seconds in self._steps.items():
            self.step_seconds.labels(step).observe(seconds)

    def stored(self, decoded: DecodedBatch, result: UpdateResult) -> int:
        """The events of a batch are readable now, except those of users set aside. Returns the age of the oldest in
        ms."""
        now_ms, times = time.time_ns() // 1_000_000, decoded.append_times_ms
        if result.set_aside:
            times = times[[event.user_id not in result.set_aside for event in decoded.events]]
        self.written(times, now_ms)
        return now_ms - int(decoded.append_times_ms.min())

    def published(self, decoded: DecodedBatch, result: UpdateResult, waiting: Set[str], republished: int) -> None:
        """A batch with events is on the topics, too. `waiting`: users whose embedding waits by the rate limit."""
        self.handled(result.users)
        self.changed.add(int(result.changed.sum()))
        self.cache_hits.add(result.cache_hits)
        self.cache_misses.add(len(result.users) - result.cache_hits)
        with_history = int((result.histories.lengths > 0).sum())  # a forgotten user has a revision and no events
        for release, users in result.behind.items():
            self.rows.add(with_history - len(users), release)
            self.stale_rows.add(len(users - waiting), release)
        self.set_aside.add(len(result.set_aside))
        self.refused.add(result.refused)
        self.encode_failures.add(result.encode_failures)
        self.forgotten.add(result.forgotten)
        self.republished.add(republished)
        self.mismatched.add(decoded.mismatched_keys)
        for field_name, events in decoded.unknown_names.items():
            self.unknown.add(events, field_name)

    def summary(self) -> StreamSummary:
        busy = (self._last_batch or 0.0) - (self._first_batch or 0.0)
        edges, counts = self.freshness.bins()
        return StreamSummary(
            events=self.events.total,
            dead_letters=self.dead.total,
            batches=self.batches,
            users=min(len(self._seen), MOST_USERS),
            user_rows=self.users.total,
            republished=self.republished.total,
            refused=self.refused.total,
            set_aside=self.set_aside.total,
            encode_failures=self.encode_failures.total,
            forgotten_events=self.forgotten.total,
            mismatched_keys=self.mismatched.total,
            unknown_names=self.unknown.total,
            lost_events=self.lost.total,
            seconds=round(time.monotonic() - self._started, 3),
            events_per_second=round(self.events.total / busy, 1) if busy > 0 else 0.0,
            freshness_p50_ms=self.freshness.quantile(0.5),
            freshness_p99_ms=self.freshness.quantile(0.99),
            freshness_edges_ms=edges,
            freshness_counts=counts,
        )
