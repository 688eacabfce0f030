"""Settings of the stream, and the part of all settings that this room reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from spoor.activity.settings import EventSettings, HistorySettings
from spoor.base.errors import UsageError
from spoor.base.limits import require_at_least, require_at_most, require_port
from spoor.broker.settings import KafkaSettings
from spoor.feature_repo.settings import FeatureSettings


@dataclass(frozen=True)
class StreamSettings:
    group: str = "spoor"  # Kafka consumer group; workers of one group share the partitions
    batch_events: int = 1000  # most events taken at once
    batch_seconds: float = 0.2  # wait for a batch to fill; it fills on while the one ahead is written
    cache_users: int = 100_000  # histories kept in memory per worker
    encode_seconds: float = 0.0  # least time between two encodes of one user; 0 = encode with every batch
    as_of: Literal["append", "event"] = "append"  # a row's as-of time; "event" when old data are replayed
    retries: int = 5  # tries of a step whose server fails before the worker stops
    retry_seconds: float = 0.25  # wait before the second try; doubles each time
    stall_seconds: float = 120.0  # without progress while events wait, the worker stops
    metrics_host: str = "127.0.0.1"  # where metrics and probes are served; 0.0.0.0 = on every address
    metrics_port: int = 0  # of /metrics (Prometheus), /healthz and /readyz; 0 = none
    releases: tuple[str, ...] = ()  # releases to keep fresh; empty = every live release in the folder

    def __post_init__(self) -> None:
        require_at_least("stream", self, 1, "batch_events", "retries")
        require_at_least("stream", self, 0, "cache_users", "encode_seconds", "retry_seconds")
        require_port("stream", self, "metrics_port", lowest=0)
        require_at_most("stream", self, 30, "batch_seconds")  # a rebalance waits for the open batch
        for name in ("batch_seconds", "stall_seconds"):
            if getattr(self, name) <= 0:
                raise UsageError(f"stream.{name} is {getattr(self, name)}", hint="it must be above 0")


class WorkerSettings(Protocol):
    """What this room needs of the composed settings (spoor/config.py)."""

    @property
    def state_folder(self) -> Path: ...
    @property
    def kafka(self) -> KafkaSettings: ...
    @property
    def events(self) -> EventSettings: ...
    @property
    def history(self) -> HistorySettings: ...
    @property
    def features(self) -> FeatureSettings: ...
    @property
    def stream(self) -> StreamSettings: ...
