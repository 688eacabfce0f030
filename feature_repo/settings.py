"""The settings of the Feast repo: its folder, its names and the folders of its files.

The definitions read settings through `load_feature_settings` only, because Feast runs them without Spoor's commands.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from spoor.activity.settings import EventSettings
from spoor.base.configuration import find_file, load
from spoor.base.errors import UsageError
from spoor.feature_repo.names import is_spoor_name

IdType = Literal["string", "int64"]


@dataclass(frozen=True)
class FeatureSettings:
    feature_repo: Path = Path("feature_repo")  # the folder that holds feature_store.yaml
    user_entity: str = "user"  # name of the entity in Feast
    user_join_key: str = "user_id"  # column that identifies a user in the entity
    user_id_type: IdType = "string"  # follows events.user_id_type, set it there
    item_entity: str = "item"  # name of the entity in Feast
    item_join_key: str = "item_id"  # column that identifies an item in the entity
    item_id_type: IdType = "string"  # follows events.item_id_type, and events follow it
    prefix: str = ""  # of the names of Spoor's views and services in Feast, e.g. spoor_; chosen before the first apply
    releases_folder: Path = Path("releases")  # each release in it gets its views
    offline_folder: Path = Path("{state_folder}/offline")  # the offline log, in Parquet
    served_folder: Path | None = None  # where readers with our provider log what they were served; empty = nowhere
    served_share: float = 1.0  # of their requests that are logged, 0 to 1

    def __post_init__(self) -> None:
        if not 0 <= self.served_share <= 1:
            raise UsageError(f"features.served_share is {self.served_share}", hint="it is a share, from 0 to 1")
        if not re.fullmatch(r"([a-z][a-z0-9_]{0,30})?", self.prefix):
            raise UsageError(
                f"features.prefix is {self.prefix!r}",
                hint="it is empty, or at most 31 of a-z, 0-9 and _ that begin with a letter, such as spoor_",
            )

    def named(self, name: str) -> str:
        """The name of a view or service (feature_repo/names.py) in this repo."""
        return self.prefix + name

    def owns(self, name: str) -> bool:
        """Whether a view or service has this prefix and one of Spoor's names: several projects may share one
        registry."""
        return name.startswith(self.prefix) and is_spoor_name(name.removeprefix(self.prefix))


def agree_on_ids(events: EventSettings, features: FeatureSettings) -> tuple[EventSettings, FeatureSettings]:
    """Both settings with the same types of ids: an id that a Feast entity cannot hold must be refused when the event is
    read. Raises UsageError if they disagree on the user's."""
    if features.user_id_type not in ("string", events.user_id_type):
        raise UsageError(
            f"features.user_id_type is `{features.user_id_type}`, events.user_id_type `{events.user_id_type}`",
            hint="set events.user_id_type only",
        )
    item_id_type: IdType = "int64" if "int64" in (events.item_id_type, features.item_id_type) else "string"
    return (
        replace(events, item_id_type=item_id_type),
        replace(features, user_id_type=events.user_id_type, item_id_type=item_id_type),
    )


def load_feature_settings(repo: Path) -> FeatureSettings:
    """Settings of the Feast repo in folder `repo`, for its definitions.

    Read from SPOOR_CONFIG, else spoor.toml in the working folder, in `repo` or above it; without any, paths are
    relative to the folder above `repo`. Raises UsageError.
    """
    repo = repo.absolute()
    nearby = [folder / "spoor.toml" for folder in (repo, repo.parent)]
    file = find_file(os.environ) or next((path for path in nearby if path.is_file()), None)
    base = {
        "SPOOR_STATE_FOLDER": str(repo.parent / ".spoor"),
        "SPOOR_FEATURES__RELEASES_FOLDER": str(repo.parent / "releases"),
    }
    environ = os.environ if file else {**base, **os.environ}
    sections = load(
        {"features": FeatureSettings, "events": EventSettings},
        file=file,
        environ=environ,
        flags={"features.feature_repo": repo},
        ignore_unknown=True,
    ).sections
    return agree_on_ids(sections["events"], sections["features"])[1]
