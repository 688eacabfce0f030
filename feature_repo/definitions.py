"""Spoor's objects in Feast: entities, the history view, each release's embedding views, the rankers' services.

`feast -c feature_repo apply` runs this file as in any Feast repo; a repo of your own calls `build` and registers the
result beside its own definitions (docs/feast.md). Only Spoor's guarded writer may fill these views, so they have
`online=False`: Feast still serves them, but `feast materialize` and `materialize-incremental` skip them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from feast import Entity, FeatureService, FeatureView, Field, FileSource, OnDemandFeatureView
from feast.data_format import ParquetFormat
from feast.types import Array, Bytes, Float32, Int64, String, from_value_type

from spoor.base.errors import UsageError
from spoor.feature_repo.entities import item_entity, to_register, user_entity
from spoor.feature_repo.names import (
    PROMOTED_RANKER,
    USER_HISTORY,
    aligned_ranker,
    item_embedding_view,
    ranker_service,
    user_embedding_view,
)
from spoor.feature_repo.releases import LiveRelease, aligned_releases, live_releases, promoted_release
from spoor.feature_repo.settings import FeatureSettings, load_feature_settings

OWNER_TAG = {"owner": "spoor"}  # `store/repo.py` may remove objects with this tag
KEEP_FOREVER = timedelta(0)
HISTORY_FIELDS = [
    Field(name="history", dtype=Bytes, description="the newest events, packed (docs/data-formats.md)"),
    Field(name="revision", dtype=Int64, description="how often this history has changed"),
    Field(name="events", dtype=Int64, description="number of events in the history"),
    Field(name="event_time_ms", dtype=Int64, description="time of the newest event, ms since 1970 UTC"),
    Field(name="as_of_ms", dtype=Int64, description="from when on all of its events were known"),
]
EMBEDDING_FIELDS = [
    Field(name="embedding", dtype=Array(Float32), description="of norm 1; zeros where no event was usable"),
    Field(name="revision", dtype=Int64, description="of the history that the embedding was computed from"),
    Field(name="events_used", dtype=Int64, description="events that the model knew"),
    Field(name="event_time_ms", dtype=Int64, description="time of the last event, ms since 1970 UTC"),
    Field(name="created_ms", dtype=Int64, description="from when on this row could be known"),
    Field(name="computed_at_ms", dtype=Int64, description="wall clock of the computation"),
    Field(name="model_version", dtype=String, description="the release"),
]


def build(
    settings: FeatureSettings,
    *,
    user: Entity | None = None,
    item: Entity | None = None,
    beside: Sequence[FeatureView | OnDemandFeatureView] = (),
) -> list[Entity | FeatureView | FeatureService]:
    """Spoor's objects in Feast's order: entities, views (with their sources), services.

    `user`, `item`: the repo's own entities, used unchanged and not returned; without them, the repo's entities with the
    configured names (`feature_repo.entities`). `beside`: views of the repo that every ranker service has beside the
    release's vectors. Raises UsageError for an entity with another join key or type than the settings have, and for a
    prefix other than that of the offline log.
    """
    _check_prefix(settings)
    entities = to_register(settings, user, item)
    # The stream's state; rankers with early fusion read it too.
    views, services = [log_view(settings, settings.named(USER_HISTORY), user_entity(settings), HISTORY_FIELDS)], []
    live = live_releases(settings.releases_folder)
    promoted = promoted_release(settings.releases_folder, live)
    aligned = aligned_releases(settings.releases_folder, live)
    for release in live:
        users, items = release_views(settings, release)
        # A ranker reads its existing features and this release's vectors.
        shown = users[["embedding", "events_used", "event_time_ms"]]
        assert shown is not None
        features = [*beside, shown, items]
        # A ranker pins a release by its own service, or follows `spoor release promote` by an alias: across all
        # releases, or across those of one vector space.
        names = [ranker_service(release.name)]
        names += [PROMOTED_RANKER] if release == promoted else []
        names += [aligned_ranker(release.space)] if aligned.get(release.space) == release.name else []
        views += [users, items]
        services += [
            FeatureService(name=settings.named(name), features=[*features], tags=_tags(release)) for name in names
        ]
    return [*entities, *views, *services]


def release_views(settings: FeatureSettings, release: LiveRelease) -> tuple[FeatureView, FeatureView]:
    """The views of one release: users' embeddings, items' embeddings."""
    tags = _tags(release)
    # One view per release: vectors of two models are never mixed.
    name = settings.named(user_embedding_view(release.name))
    users = log_view(settings, name, user_entity(settings), EMBEDDING_FIELDS, tags=tags)
    # Candidates in the same space, so that a ranker may take the dot product.
    vector = Field(name="item_embedding", dtype=Array(Float32), description="of norm 1")
    name = settings.named(item_embedding_view(release.name))
    items = log_view(settings, name, item_entity(settings), [vector], tags=tags)
    return users, items


def _check_prefix(settings: FeatureSettings) -> None:
    """Raises UsageError for a changed prefix: existing rows would not be found, and histories would start empty."""
    names = {folder.name for folder in settings.offline_folder.glob(f"*{USER_HISTORY}") if folder.is_dir()}
    if names and settings.named(USER_HISTORY) not in names:
        earlier = min(names).removesuffix(USER_HISTORY)
        raise UsageError(
            f"features.prefix is `{settings.prefix}`, and `{settings.offline_folder}` was written with `{earlier}`",
            hint=f'set features.prefix = "{earlier}"; for new names, move that folder away, apply, and backfill',
        )


def log_view(
    settings: FeatureSettings,
    name: str,
    entity: Entity,
    fields: list[Field],
    *,
    online: bool = False,
    tags: dict[str, str] | None = None,
) -> FeatureView:
    """A view whose rows are in the offline log."""
    source = FileSource(
        name=f"{name}_log",
        path=source_path(settings, name),
        file_format=ParquetFormat(),  # Feast detects Parquet by the suffix .parquet, which the folder lacks
        timestamp_field="event_timestamp",
        created_timestamp_column="created_timestamp",
        tags=OWNER_TAG,
    )
    # The key's type is explicit: an entity may lack one, and Feast would infer it from files.
    key = Field(name=entity.join_key, dtype=from_value_type(entity.value_type))
    return FeatureView(
        name=name,
        entities=[entity],
        schema=[key, *fields],
        source=source,
        ttl=KEEP_FOREVER,
        online=online,
        tags=OWNER_TAG | (tags or {}),
    )


def source_folder(settings: FeatureSettings, view: str) -> Path:
    """The offline folder of a view: Parquet files by day. Absolute, because Feast's DuckDB store resolves a relative
    path from the reader's working folder."""
    return settings.offline_folder.absolute() / view


def source_path(settings: FeatureSettings, view: str) -> str:
    """The path for Feast's offline stores: the folder, or a pattern of its files if the folder's name has characters of
    a pattern (`*`, `?`, `[`). DuckDB reads every path as a pattern, and both DuckDB and dask read this one. Raises
    UsageError for a backslash, which DuckDB reads as the end of a folder's name."""
    folder = str(source_folder(settings, view))
    if "\\" in folder:
        raise UsageError(
            f"the offline log lies in `{folder}`: DuckDB reads no path with a backslash",
            hint="set features.offline_folder (or state_folder) to a folder without one",
        )
    escaped = "".join(f"[{character}]" if character in "*?[" else character for character in folder)
    return folder if escaped == folder else f"{escaped}/day=*/*.parquet"


def _tags(release: LiveRelease) -> dict[str, str]:
    return OWNER_TAG | {
        "model_version": release.name,
        "dimension": str(release.dimension),
        "dtype": "float32",
        "trained_through": release.trained_through,
        "space": release.space,
    }


if __name__ == "definitions":  # Feast imports this file under its bare name and registers the module's attributes
    globals().update({f"spoor_{o.name}": o for o in build(load_feature_settings(Path(__file__).parent))})
