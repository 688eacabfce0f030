"""Registers Spoor's definitions from a program, as `feast apply` does from the command line.

Other than the command it leaves alone what is not Spoor's: a company's own views may live in the same Feast project.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feast import Entity, FeatureService, FeatureStore, FeatureView
from feast.errors import FeastError

from activity.errors import InfrastructureError, UsageError
from activity.files import atomic_write
from feature_repo.definitions import OWNER_TAG, build
from feature_repo.settings import FeatureSettings
from store.feast_store import open_feature_store
from store.offline import open_offline

_DEFINITIONS = '''\
"""Spoor's definitions. Add your own below."""

from pathlib import Path

from feature_repo.definitions import build
from feature_repo.settings import load_feature_settings

globals().update({f"spoor_{o.name}": o for o in build(load_feature_settings(Path(__file__).parent))})
'''


@dataclass(frozen=True)
class Applied:
    """Names of Spoor's views and services in Feast after the call, and of those that it removed."""

    registered: tuple[str, ...]
    removed: tuple[str, ...]


def apply(features: FeatureSettings) -> Applied:
    """Registers the definitions, makes room for them in the online store, removes Spoor's views and services of
    releases that are gone, with their rows. Run twice, it changes nothing.

    Raises UsageError where an entity of another shape has the configured name, InfrastructureError where registry or
    store cannot be reached.
    """
    store, guard = open_feature_store(features, create=True)
    objects = build(features)
    entities = [o for o in objects if isinstance(o, Entity)]
    views = [o for o in objects if isinstance(o, FeatureView)]
    services = [o for o in objects if isinstance(o, FeatureService)]
    names = {o.name for o in [*views, *services]}
    try:
        gone = [o for o in _owned(store) if o.name not in names]
        theirs = {entity.name: entity for entity in store.list_entities()}
        new = [entity for entity in entities if not _same(theirs.get(entity.name), entity)]
        open_offline(features).prepare()
        store.apply([*new, *views, *services], objects_to_delete=[*gone], partial=False)
        guard.create_tables(store.config, views)
    except (OSError, FeastError) as error:
        raise InfrastructureError(
            f"cannot apply `{features.feature_repo}`: {error}",
            hint="check registry and online_store in feature_store.yaml, permissions and free space",
        ) from error
    return Applied(tuple(sorted(names)), tuple(sorted(o.name for o in gone)))


def create_repo(folder: Path, *, online_store: Mapping[str, Any], state_folder: Path) -> None:
    """A Feast repo in `folder` with Spoor's definitions, registry and online store in `state_folder`.

    `online_store`: what feature_store.yaml says of it; {"type": "sqlite"} gets its path in the state folder.
    """
    online = dict(online_store)
    if online.get("type") == "sqlite":
        online.setdefault("path", str(state_folder.absolute() / "online.db"))
    content = {
        "project": "spoor",
        "provider": "local",
        "registry": str(state_folder.absolute() / "registry.db"),
        "online_store": online,
        "offline_store": {"type": "duckdb"},
        "entity_key_serialization_version": 3,
    }
    atomic_write(folder / "feature_store.yaml", json.dumps(content, indent=2).encode())  # JSON is YAML
    atomic_write(folder / "definitions.py", _DEFINITIONS.encode())


def _owned(store: FeatureStore) -> list[FeatureView | FeatureService]:
    objects = [*store.list_feature_views(), *store.list_feature_services()]
    owned = [o for o in objects if OWNER_TAG.items() <= dict(o.tags).items()]
    return [o for o in owned if isinstance(o, FeatureView | FeatureService)]


def _same(registered: Entity | None, wanted: Entity) -> bool:
    """Whether the entity is there already, perhaps with a company's own description. UsageError if it differs."""
    if registered is None:
        return False
    if (registered.join_key, registered.value_type) != (wanted.join_key, wanted.value_type):
        raise UsageError(
            f"entity `{wanted.name}` is registered with join key {registered.join_key} of type "
            f"{registered.value_type.name}, the settings say {wanted.join_key} of type {wanted.value_type.name}",
            hint="set features.user_join_key and events.user_id_type (items: features.item_…) to what is registered",
        )
    return True
