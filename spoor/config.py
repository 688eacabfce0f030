"""All of Spoor's settings in one typed object."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from activity.settings import EventSettings, HistorySettings, KafkaSettings, LakeSettings


@dataclass(frozen=True)
class Settings:
    state_folder: Path = Path(".spoor")
    kafka: KafkaSettings = field(default_factory=KafkaSettings)
    events: EventSettings = field(default_factory=EventSettings)
    history: HistorySettings = field(default_factory=HistorySettings)
    lake: LakeSettings = field(default_factory=LakeSettings)
