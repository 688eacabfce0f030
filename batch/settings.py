"""The settings that the batch jobs read, as protocols. Settings of spoor/config.py satisfies them; tests may pass
less."""

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
    """Section [flink]: where `--runner flink` runs. All task managers and worker pools need access to the same folders
    and stores."""

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


@dataclass(frozen=True)
class DriftSettings:
    """Section [drift]: limits above which `spoor release drift` ends with exit code 1."""

    max_norm_change: float = 0.02  # between the days' mean norms; every user without a usable event takes 1 / users
    max_mean_shift: float = 0.25  # of the coordinate that moved most, in standard deviations
    max_auc: float = 0.65  # of a linear classifier that tells the days apart; 0.5 = it cannot
    min_users: int = 500  # on each day; with fewer, chance alone comes near the limits
    max_users: int = 20_000  # of each day that are read into memory, drawn by the hashes of their ids

    def __post_init__(self) -> None:
        for name in ("max_norm_change", "max_mean_shift"):
            if getattr(self, name) < 0:
                raise UsageError(f"drift.{name} is {getattr(self, name)}", hint="it must be at least 0")
        if not 0.5 <= self.max_auc <= 1:
            raise UsageError(f"drift.max_auc is {self.max_auc}", hint="it must be between 0.5 and 1")
        if not 50 <= self.min_users <= self.max_users:
            raise UsageError(
                f"drift.min_users is {self.min_users}, drift.max_users {self.max_users}",
                hint="set drift.min_users to 50 or more, and drift.max_users no smaller",
            )


class StreamedSettings(Protocol):
    """The part of [stream] on which batch and stream must agree: the as-of time of rows, and the written releases."""

    @property
    def as_of(self) -> Literal["append", "event"]: ...
    @property
    def releases(self) -> tuple[str, ...]: ...  # that workers write; empty = all live ones
    @property
    def encode_seconds(self) -> float: ...  # least time between two encodes of a user; 0 = no limit


class ArchiveSettings(Protocol):
    """The settings of `spoor archive`."""

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
    """The settings of the other batch jobs."""

    @property
    def history(self) -> HistorySettings: ...
    @property
    def stream(self) -> StreamedSettings: ...
    @property
    def kernels(self) -> KernelSettings: ...
