"""Registers Spoor's definitions from a program, as `feast apply` does from the command line.

Other than the command it leaves alone what is not Spoor's: a company's own views may live in the same Feast project.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from feast import FeatureService, FeatureStore, FeatureView, OnDemandFeatureView
from feast.base_feature_view import BaseFeatureView
from feast.errors import FeastError

from spoor.base.errors import InfrastructureError, UsageError
from spoor.base.files import atomic_write
from spoor.feature_repo.activity_views import build_activity
from spoor.feature_repo.definitions import build
from spoor.feature_repo.entities import check_shape, item_entity, user_entity
from spoor.feature_repo.settings import FeatureSettings
from spoor.store.feast_store import is_ours, open_feature_store
from spoor.store.offline import open_offline, warn_of_offline_store

_DEFINITIONS = '''\
"""Spoor's definitions, and the example views that its demo reads beside them. Add your own below."""

from pathlib import Path

from spoor.feature_repo.activity_views import build_activity
from spoor.feature_repo.definitions import build
from spoor.feature_repo.settings import load_feature_settings

settings = load_feature_settings(Path(__file__).parent)
examples = build_activity(settings)
globals().update({f"spoor_{o.name}": o for o in [*examples, *build(settings, beside=examples)]})
'''


@dataclass(frozen=True)
class Applied:
    """Names of Spoor's views and services in Feast after the call, and of those that it removed."""

    registered: tuple[str, ...]
    removed: tuple[str, ...]


def apply(features: FeatureSettings, examples: Literal["add", "keep"] = "add") -> Applied:
    """Registers the definitions, makes room for them in the online store, removes Spoor's views and services of
    releases that are gone, with their rows. Run twice, it changes nothing.

    `examples`: "add" registers the example views too (feature_repo/activity_views.py), for the demo, tests and
    benchmarks; "keep", for a command that runs in anybody's repo, has them only where they are registered. Views of the
    repo's own that stand beside Spoor's in a ranker service stay there.

    Raises UsageError where an entity of another shape, or something that is not Spoor's, has one of the names,
    InfrastructureError where registry or store cannot be reached.
    """
    store, guard = open_feature_store(features, create=True)
    warn_of_offline_store(store.config)
    try:
        theirs = {entity.name: entity for entity in store.list_entities()}
        registered = {view.name: view for view in store.list_all_feature_views()}
        owned = _owned(store, features)
        shown = [
            view
            for view in build_activity(features)
            if (is_ours(registered[view.name]) if view.name in registered else examples == "add")
        ]
        ours = {entity.name: entity for entity in (user_entity(features), item_entity(features))}
        for name, entity in ours.items():
            if name in theirs:
                check_shape(theirs[name], entity)
        user, item = (theirs.get(name, entity) for name, entity in ours.items())
        beside = [*shown, *_beside(owned, registered)]
        objects = build(features, user=user, item=item, beside=beside)
        views = [*shown, *(o for o in objects if isinstance(o, FeatureView))]
        services = [o for o in objects if isinstance(o, FeatureService)]
        _check_names(store, registered, views, services)
        names = {o.name for o in [*views, *services]}
        gone = [o for o in owned if o.name not in names]
        new = [entity for name, entity in ours.items() if name not in theirs]
        open_offline(features).prepare(view.name.removeprefix(features.prefix) for view in shown)
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


def _owned(store: FeatureStore, features: FeatureSettings) -> list[FeatureView | FeatureService]:
    objects = [*store.list_feature_views(), *store.list_feature_services()]
    ours = [o for o in objects if isinstance(o, FeatureView | FeatureService) and is_ours(o)]
    return [o for o in ours if features.owns(o.name)]


def _beside(
    owned: Sequence[FeatureView | FeatureService], registered: Mapping[str, BaseFeatureView]
) -> list[FeatureView | OnDemandFeatureView]:
    """What the repo's own definitions put beside Spoor's views in its services, as it was registered."""
    projections = [
        projection for o in owned if isinstance(o, FeatureService) for projection in o.feature_view_projections
    ]
    found: dict[str, FeatureView | OnDemandFeatureView] = {}
    for projection in projections:
        view = registered.get(projection.name)
        if isinstance(view, FeatureView | OnDemandFeatureView) and not is_ours(view):
            shown = view.with_projection(projection)
            assert shown is not None  # Feast's annotation
            found.setdefault(projection.name_to_use(), shown)
    return list(found.values())


def _check_names(
    store: FeatureStore,
    registered: Mapping[str, BaseFeatureView],
    views: Sequence[FeatureView],
    services: Sequence[FeatureService],
) -> None:
    """Raises UsageError where a name is another's already: to register it would replace what it means."""
    there = {service.name: service for service in store.list_feature_services()}
    taken = [f"a view `{view.name}`" for view in views if not is_ours(registered.get(view.name, view))]
    taken += [f"a service `{service.name}`" for service in services if not is_ours(there.get(service.name, service))]
    if taken:
        raise UsageError(
            f"Feast has {' and '.join(taken)}, not made by Spoor",
            hint="set features.prefix, e.g. to spoor_ (docs/feast.md)",
        )
