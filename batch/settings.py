"""What the batch jobs read of the configuration. spoor/config.py's Settings fits this shape; tests may pass less."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol

from activity.settings import EventSettings, HistorySettings, KafkaSettings, LakeSettings
from feature_repo.settings import FeatureSettings


class AsOfSettings(Protocol):
    """The part of the stream's section that decides a row's as-of time; batch and stream must agree on it."""

    @property
    def as_of(self) -> Literal["append", "event"]: ...


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
    def stream(self) -> AsOfSettings: ...
