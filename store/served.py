"""What rankers were served, logged so that they can be trained on what they saw.

Feast's Python feature server does not log features, though feature_store.yaml knows `feature_logging`. A provider is
where Feast lets others in: with

    provider: spoor.store.served.ServedFeaturesProvider

in the feature_store.yaml of a reader (`feast serve`, or a ranker's own process), every answer of a feature service is
logged while `features.served_folder` is set:

    FOLDER/<service>/day=2026-01-31/<time>-<random>.parquet    entities and features as answered, __request_id,
                                                               __log_timestamp and __model_version, the release
    FOLDER/<service>/day=1970-01-01/schema.parquet             no rows

A request never waits for the log and never fails by it. Answers wait in memory, a bounded number of rows, for a thread
that writes them every few seconds; what finds no room, or cannot be written, is left out, and the process's log says
how many rows. So does a process that is killed; one that ends writes what it has.
"""

from __future__ import annotations

import atexit
import logging
import random
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
from feast import FeatureService
from feast.feature_logging import LOG_TIMESTAMP_FIELD, REQUEST_ID_FIELD
from feast.infra.passthrough_provider import PassthroughProvider
from feast.online_response import OnlineResponse
from feast.repo_config import RepoConfig
from feast.types import from_feast_to_pyarrow_type

from spoor.base.files import atomic_path
from spoor.feature_repo.settings import load_feature_settings
from spoor.store.offline import SCHEMA_FILE

MODEL_VERSION_FIELD = "__model_version"
_FLUSH_SECONDS = 5.0
_MOST_ROWS = 50_000  # in memory
_log = logging.getLogger(__name__)


class ServedFeaturesProvider(PassthroughProvider):
    """Feast's own provider, with a log of what it answered. Raises UsageError for settings of Spoor that are wrong."""

    def __init__(self, config: RepoConfig) -> None:
        super().__init__(config)
        assert config.repo_path is not None
        settings = load_feature_settings(config.repo_path)
        self._served = None
        if settings.served_folder is not None:
            self._served = ServedLog(settings.served_folder, share=settings.served_share)

    def get_online_features(self, *arguments: Any, **named: Any) -> OnlineResponse:
        answer = super().get_online_features(*arguments, **named)
        self._log(named["features"], answer)
        return answer

    async def get_online_features_async(self, *arguments: Any, **named: Any) -> OnlineResponse:
        answer = await super().get_online_features_async(*arguments, **named)
        self._log(named["features"], answer)
        return answer

    def _log(self, features: list[str] | FeatureService, answer: OnlineResponse) -> None:
        if self._served is not None and isinstance(features, FeatureService):
            self._served.add(features, answer)


@dataclass(frozen=True, eq=False)
class _Served:
    service: FeatureService
    answer: OnlineResponse
    time_us: int

    @property
    def rows(self) -> int:
        return len(self.answer.proto.results[0].values) if self.answer.proto.results else 0

    @property
    def day(self) -> str:
        return datetime.fromtimestamp(self.time_us / 1e6, UTC).date().isoformat()

    def table(self) -> pa.Table:
        """One row per entity row. Types are the features', also where every value is null."""
        types = {}
        for projection in self.service.feature_view_projections:
            for field in projection.features:
                kind = from_feast_to_pyarrow_type(field.dtype)
                types |= {field.name: kind, f"{projection.name_to_use()}__{field.name}": kind}
        columns = {name: pa.array(values, types.get(name)) for name, values in self.answer.to_dict().items()}
        rows = self.rows
        columns |= {
            REQUEST_ID_FIELD: pa.array([uuid.uuid4().hex] * rows, pa.string()),
            LOG_TIMESTAMP_FIELD: pa.array([self.time_us] * rows, pa.int64()).cast(pa.timestamp("us", "UTC")),
            MODEL_VERSION_FIELD: pa.array([self.service.tags.get("model_version")] * rows, pa.string()),
        }
        return pa.table(columns)


class ServedLog:
    """Threads may share it. `share`: of the requests that are logged, 0 to 1. Its thread starts with the first answer,
    so a server may fork before."""

    def __init__(
        self, folder: Path, *, share: float = 1.0, flush_seconds: float = _FLUSH_SECONDS, most_rows: int = _MOST_ROWS
    ) -> None:
        self.folder = folder
        self._share = share
        self._flush_seconds = flush_seconds
        self._most_rows = most_rows
        self._lock = Lock()
        self._waiting: list[_Served] = []
        self._rows = 0
        self._left_out = 0
        self._full = Event()
        self._thread: Thread | None = None

    def add(self, service: FeatureService, answer: OnlineResponse) -> None:
        """Neither waits nor raises."""
        if self._share < 1 and random.random() >= self._share:
            return
        served = _Served(service, answer, time.time_ns() // 1000)
        with self._lock:
            if self._rows + served.rows > self._most_rows:
                self._left_out += served.rows
            else:
                self._waiting.append(served)
                self._rows += served.rows
            if self._rows > self._most_rows // 2:
                self._full.set()
            if self._thread is None or not self._thread.is_alive():
                self._thread = Thread(target=self._run, name="served-features-log", daemon=True)
                self._thread.start()
                atexit.register(self.flush)

    def flush(self) -> None:
        """Writes what waits. Does not raise: what cannot be written is said in the process's log, and gone."""
        with self._lock:
            waiting, self._waiting, self._rows = self._waiting, [], 0
            left_out, self._left_out = self._left_out, 0
            self._full.clear()
        if left_out:
            _log.warning("the log of served features is behind: %d rows were left out", left_out)
        groups: dict[tuple[str, ...], list[_Served]] = {}
        for served in waiting:
            names = served.answer.proto.metadata.feature_names.val
            groups.setdefault((served.service.name, served.day, *names), []).append(served)
        for (service, day, *_), group in groups.items():
            try:
                self._write(service, day, pa.concat_tables([served.table() for served in group]))
            except Exception as error:  # whatever is wrong with the log, requests go on
                rows = sum(served.rows for served in group)
                _log.error("%d rows of served features could not be logged: %s: %s", rows, type(error).__name__, error)

    def _write(self, service: str, day: str, table: pa.Table) -> None:
        folder = self.folder / quote(service, safe="")
        if not (folder / SCHEMA_FILE).exists():
            with atomic_path(folder / SCHEMA_FILE) as temporary:
                pq.write_table(table.schema.empty_table(), temporary)
        name = f"{datetime.now(UTC):%H%M%S}-{uuid.uuid4().hex}.parquet"
        with atomic_path(folder / f"day={day}" / name) as temporary:
            pq.write_table(table, temporary, compression="zstd")

    def _run(self) -> None:
        while True:
            self._full.wait(self._flush_seconds)
            self.flush()
