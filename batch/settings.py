"""What the batch jobs read of the configuration. spoor/config.py's Settings fits this shape; tests may pass less."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from spoor.activity.settings import EventSettings, HistorySettings, LakeSettings
from spoor.base.errors import UsageError
from spoor.base.limits import require_at_least
from spoor.broker.settings import KafkaSettings
from spoor.feature_repo.settings import FeatureSettings
from spoor.kernels.settings import KernelSettings


@dataclass(frozen=True)
class FlinkSettings:
    """Where `--runner flink` runs. All task managers and worker pools need the same folders and stores in reach."""

    master: str = "[local]"  # host:port of a Flink cluster's REST interface; [local] = inside the job server
    job_endpoint: str = ""  # host:port of a Beam job server of yours; empty = one is started for the job
    environment: Literal["LOOPBACK", "EXTERNAL"] = "LOOPBACK"  # Python in this process, or in Beam's worker pools
    worker_pool: str = ""  # host:port of the pool that each task manager finds beside it, with EXTERNAL
    parallelism: int = 1  # slices of the job that run at once; with LOOPBACK they share one process
    retries: int = 3  # of a job that Flink lost, with a task manager say; what is noted as done is passed over
    heap_mb: int = 768  # Java heap of the job server

    def __post_init__(self) -> None:
        require_at_least("flink", self, 1, "parallelism", "heap_mb")
        require_at_least("flink", self, 0, "retries")
        if (self.environment == "EXTERNAL") != bool(self.worker_pool):
            raise UsageError(
                f"flink.environment is {self.environment} and flink.worker_pool is {self.worker_pool or 'empty'}",
                hint="EXTERNAL needs the address of a worker pool, LOOPBACK takes none",
            )
        if self.environment == "LOOPBACK" and self.master != "[local]":
            raise UsageError(
                f"flink.master is {self.master}, and with LOOPBACK all Python runs in the submitting process",
                hint="start worker pools beside the task managers and set flink.environment and flink.worker_pool",
            )


class StreamedSettings(Protocol):
    """The part of the stream's section on which batch and stream must agree: a row's as-of time, and who is written."""

    @property
    def as_of(self) -> Literal["append", "event"]: ...
    @property
    def releases(self) -> tuple[str, ...]: ...  # that workers write; empty = all live ones
    @property
    def encode_seconds(self) -> float: ...  # least time between two encodes of a user; 0 = no limit


class ArchiveSettings(Protocol):
    """What `spoor archive` needs."""

    @property
    def state_folder(self) -> Path: ...
    @property
    def kafka(self) -> KafkaSettings: ...
    @property
    def events(self) -> EventSettings: ...
    @property
    def lake(self) -> LakeSettings: ...
    @property
    def features(self) -> FeatureSettings: ...


class BatchSettings(ArchiveSettings, Protocol):
    """What `spoor backfill` and `spoor verify` need besides."""

    @property
    def history(self) -> HistorySettings: ...
    @property
    def stream(self) -> StreamedSettings: ...
    @property
    def kernels(self) -> KernelSettings: ...
