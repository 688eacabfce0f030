"""All of Spoor's settings in one typed object, with the origin of each value.

Each room declares its section; this module combines the sections and reads them from the settings file, the environment
and the flags (rules: spoor/base/configuration.py). No other module reads settings from the environment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

from spoor.activity.settings import EventSettings, HistorySettings, LakeSettings
from spoor.base.configuration import TopSettings, find_file, load, settings_of
from spoor.batch.settings import DriftSettings, FlinkSettings
from spoor.broker.settings import KafkaSettings
from spoor.encoder.training.settings import PretrainSettings
from spoor.feature_repo.settings import FeatureSettings, agree_on_ids
from spoor.kernels.settings import KernelSettings
from spoor.ranking.settings import FinetuneSettings
from spoor.streaming.settings import StreamSettings

SECTIONS: dict[str, type] = {
    "kafka": KafkaSettings,
    "events": EventSettings,
    "history": HistorySettings,
    "features": FeatureSettings,
    "lake": LakeSettings,
    "stream": StreamSettings,
    "flink": FlinkSettings,
    "pretrain": PretrainSettings,
    "finetune": FinetuneSettings,
    "drift": DriftSettings,
    "kernels": KernelSettings,
}
HIDDEN = "(hidden)"


@dataclass(frozen=True)
class Settings:
    """All sections. Created by `load_settings`, which also puts the state folder into the default paths."""

    state_folder: Path
    kafka: KafkaSettings
    events: EventSettings
    history: HistorySettings
    features: FeatureSettings
    lake: LakeSettings
    stream: StreamSettings
    flink: FlinkSettings
    pretrain: PretrainSettings
    finetune: FinetuneSettings
    drift: DriftSettings
    kernels: KernelSettings
    origins: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)  # of each `section.key`

    def given(self, section: str) -> frozenset[str]:
        """Names of the section's settings that come from a file, the environment or a flag."""
        start = f"{section}."
        return frozenset(
            key.removeprefix(start)
            for key, origin in self.origins.items()
            if key.startswith(start) and origin != "default"
        )

    def shown(self) -> list[tuple[str, Any, str]]:
        """(key, value, origin) of every setting, in the order of docs/configuration.md; secrets are hidden."""
        rows: list[tuple[str, Any, str]] = [
            ("state_folder", self.state_folder, self.origins.get("state_folder", "default"))
        ]
        for section, cls in SECTIONS.items():
            for key, known, _ in settings_of(section, cls):
                value = attrgetter(key)(self)
                if known.metadata.get("secret") and value:
                    value = HIDDEN
                rows.append((key, value, self.origins.get(key, "default")))
        return rows


def load_settings(
    *,
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> Settings:
    """Reads `file` (else SPOOR_CONFIG, else ./spoor.toml), the environment (`environ`, else the process's) and
    `flags` (`section.key` → value). Raises UsageError."""
    environ = os.environ if environ is None else environ
    loaded = load(SECTIONS, file=find_file(environ, flag=file), environ=environ, flags=flags)
    top: TopSettings = loaded.sections[""]
    sections = {name: loaded.sections[name] for name in SECTIONS}
    sections["events"], sections["features"] = agree_on_ids(sections["events"], sections["features"])
    return Settings(state_folder=top.state_folder, origins=loaded.origins, **sections)
