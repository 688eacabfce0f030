"""What Spoor registers in Feast: entities, the history view, each release's embedding views, the rankers' services.

`feast -c feature_repo apply` runs this file as in any Feast repo; a repo of your own calls `build` and registers what
it returns beside its own definitions. Views that only Spoor's guarded writer may fill are `online=False`: Feast serves
them all the same, but `feast materialize` and `materialize-incremental` leave them alone.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.data_format import ParquetFormat
from feast.types import Array, Bytes, Float32, Int64, String

from feature_repo.names import (
    ITEM_ACTIVITY,
    PROMOTED_RANKER,
    USER_ACTIVITY,
    USER_HISTORY,
    aligned_ranker,
    item_embedding_view,
    ranker_service,
    user_embedding_view,
)
from feature_repo.releases import LiveRelease, aligned_releases, live_releases, promoted_release
from feature_repo.settings import FeatureSettings, IdType, load_feature_settings

OWNER_TAG = {"owner": "spoor"}  # by it `store/repo.py` knows what it may remove
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
USER_ACTIVITY_FIELDS = [
    Field(name="user_events_total", dtype=Int64, description="events up to the row's time"),
    Field(name="user_events_7d", dtype=Int64, description="events in the last 7 days"),
    Field(name="user_events_28d", dtype=Int64, description="events in the last 28 days"),
    Field(name="user_positive_rate", dtype=Float32, description="share of positive actions, 0 to 1"),
]
ITEM_ACTIVITY_FIELDS = [
    Field(name="item_events_total", dtype=Int64, description="events up to the row's time"),
    Field(name="item_users_total", dtype=Int64, description="distinct users up to the row's time"),
    Field(name="item_events_7d", dtype=Int64, description="events in the last 7 days"),
    Field(name="item_events_28d", dtype=Int64, description="events in the last 28 days"),
    Field(name="item_positive_rate", dtype=Float32, description="share of positive actions, 0 to 1"),
]


def build(settings: FeatureSettings) -> list[Entity | FeatureView | FeatureService]:
    """All objects in Feast's order: entities, views (their sources come with them), services."""
    user, item = _user(settings), _item(settings)
    # The stream's state, and what a ranker with early fusion reads.
    history = _view(settings, USER_HISTORY, user, HISTORY_FIELDS)
    # The features that every company already has; rows are written by ranking/, materialised by plain Feast.
    user_activity = _view(settings, USER_ACTIVITY, user, USER_ACTIVITY_FIELDS, online=True)
    item_activity = _view(settings, ITEM_ACTIVITY, item, ITEM_ACTIVITY_FIELDS, online=True)
    views, services = [history, user_activity, item_activity], []
    live = live_releases(settings.releases_folder)
    promoted = promoted_release(settings.releases_folder, live)
    aligned = aligned_releases(settings.releases_folder, live)
    for release in live:
        users, items = release_views(settings, release)
        # What a ranker reads: the features it had before, and this release's vectors beside them.
        shown = users[["embedding", "events_used", "event_time_ms"]]
        assert shown is not None
        features = [user_activity, item_activity, shown, items]
        # A ranker pins a release by its own service, or follows `spoor release promote` by an alias: through all
        # releases, or through those whose vectors mean the same.
        names = [ranker_service(release.name)]
        names += [PROMOTED_RANKER] if release == promoted else []
        names += [aligned_ranker(release.space)] if aligned.get(release.space) == release.name else []
        views += [users, items]
        services += [FeatureService(name=name, features=[*features], tags=_tags(release)) for name in names]
    return [user, item, *views, *services]


def release_views(settings: FeatureSettings, release: LiveRelease) -> tuple[FeatureView, FeatureView]:
    """The views of one release: users' embeddings, items' embeddings."""
    tags = _tags(release)
    # One view per release: vectors of two models are never mixed.
    name = user_embedding_view(release.name)
    users = _view(settings, name, _user(settings), EMBEDDING_FIELDS, tags=tags)
    # Candidates in the same space, so that a ranker may take the dot product.
    vector = Field(name="item_embedding", dtype=Array(Float32), description="of norm 1")
    items = _view(settings, item_embedding_view(release.name), _item(settings), [vector], tags=tags)
    return users, items


def source_folder(settings: FeatureSettings, view: str) -> Path:
    """Where the rows of a view lie offline: a folder of Parquet files, read recursively. Absolute, because Feast's
    DuckDB store takes a relative path from wherever the reader was started."""
    return settings.offline_folder.absolute() / view


def _user(settings: FeatureSettings) -> Entity:
    # A company has a user entity already: its name, join key and type are settings, so both can be one.
    return _entity(settings.user_entity, settings.user_join_key, settings.user_id_type)


def _item(settings: FeatureSettings) -> Entity:
    # The candidates that rankers score; its views hold vectors of the same space as the users'.
    return _entity(settings.item_entity, settings.item_join_key, settings.item_id_type)


def _entity(name: str, join_key: str, id_type: IdType) -> Entity:
    value_type = {"string": ValueType.STRING, "int64": ValueType.INT64}[id_type]
    return Entity(name=name, join_keys=[join_key], value_type=value_type)


def _view(
    settings: FeatureSettings,
    name: str,
    entity: Entity,
    fields: list[Field],
    *,
    online: bool = False,
    tags: dict[str, str] | None = None,
) -> FeatureView:
    source = FileSource(
        name=f"{name}_log",
        path=str(source_folder(settings, name)),
        file_format=ParquetFormat(),  # a folder's name does not end in .parquet, by which Feast would know
        timestamp_field="event_timestamp",
        created_timestamp_column="created_timestamp",
        tags=OWNER_TAG,
    )
    tags = OWNER_TAG | (tags or {})
    return FeatureView(
        name=name, entities=[entity], schema=fields, source=source, ttl=KEEP_FOREVER, online=online, tags=tags
    )


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
