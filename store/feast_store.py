"""Opens Feast with Spoor's guarded online store in the place of Feast's own, and checks that the definitions are there.

feature_store.yaml stays plain, so readers need nothing but Feast.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import yaml
from feast import FeatureService, FeatureStore, FeatureView
from feast.base_feature_view import BaseFeatureView
from feast.errors import FeastError
from feast.infra.online_stores.redis import RedisOnlineStoreConfig
from feast.infra.online_stores.sqlite import SqliteOnlineStoreConfig
from feast.infra.passthrough_provider import PassthroughProvider
from feast.repo_config import FeastConfigError, RepoConfig, load_repo_config
from pydantic import ValidationError

from spoor.base.errors import InfrastructureError, UsageError
from spoor.feature_repo.definitions import OWNER_TAG
from spoor.feature_repo.entities import registry_file
from spoor.feature_repo.names import user_embedding_view
from spoor.feature_repo.releases import live_releases
from spoor.feature_repo.settings import FeatureSettings
from spoor.store.guarded.fallback import UnguardedStore
from spoor.store.guarded.guard import GuardedStore
from spoor.store.guarded.protobytes import KEY_VERSION
from spoor.store.guarded.redis_guard import GuardedRedisOnlineStore
from spoor.store.guarded.sqlite_guard import GuardedSqliteOnlineStore

_LOG = logging.getLogger(__name__)


class LiveNames(NamedTuple):
    applied: list[str]
    not_applied: list[str]

    @property
    def usable(self) -> list[str]:
        """The applied ones; all of them where none is, which whoever opens the store reports."""
        return self.applied or self.not_applied


def open_feature_store(features: FeatureSettings, *, create: bool = False) -> tuple[FeatureStore, GuardedStore]:
    """The Feast repo, and its online store as Spoor writes it. `create` allows a registry that is not there yet.

    Raises UsageError where there is no Feast repo or nothing was applied, InfrastructureError where the registry
    cannot be read.
    """
    config = _repo_config(features)
    registry = registry_file(features.feature_repo, config)
    if registry is not None and create:
        with _registry_errors(features):
            registry.parent.mkdir(parents=True, exist_ok=True)
    elif registry is not None and not registry.exists():
        raise not_applied(features, f"there is no registry at `{registry}`")
    with _registry_errors(features):
        store = FeatureStore(repo_path=str(features.feature_repo.absolute()), config=config)
    return store, _swap_online_store(store)


def registered_view(store: FeatureStore, features: FeatureSettings, name: str) -> FeatureView:
    """Raises UsageError if the definitions with this view were not applied."""
    for fresh in (False, True):  # another process may have applied since the registry was cached
        if fresh:
            with _registry_errors(features):
                store.refresh_registry()
        for view in store.registry.list_feature_views(store.project, allow_cache=True):
            if view.name == name:
                return view
    raise not_applied(features, f"Feast does not know the view `{name}`")


def registered_releases(store: FeatureStore, features: FeatureSettings) -> list[str]:
    """The releases that have a user embedding view, by name."""
    views = store.registry.list_feature_views(store.project, allow_cache=True)
    versions = {view.name: view.tags.get("model_version", "") for view in views}
    return sorted(
        version
        for name, version in versions.items()
        if version and name == features.named(user_embedding_view(version))
    )


def registered_user_views(store: FeatureStore, features: FeatureSettings) -> list[str]:
    """The names of all views of this prefix that are keyed by the user alone, of live and of other releases."""
    views = store.registry.list_feature_views(store.project, allow_cache=True)
    owned = [view for view in views if is_ours(view) and features.owns(view.name)]
    return sorted(view.name for view in owned if view.join_keys == [features.user_join_key])


def live_names(features: FeatureSettings) -> LiveNames:
    """The names of the live releases, in order. A release has no view between placing its folder and `feast apply`:
    readers and writers leave it out, and a warning says so. Raises DataError for a damaged release."""
    live = [release.name for release in live_releases(features.releases_folder)]
    try:
        known = set(registered_releases(open_feature_store(features)[0], features)) if live else set()
    except (UsageError, FeastError):  # no Feast repo, or one that was never applied: reported where the store is opened
        known = set[str]()
    found = LiveNames([name for name in live if name in known], [name for name in live if name not in known])
    if found.applied:
        for name in found.not_applied:
            _LOG.warning(
                "release %s is in %s and not applied: it is left out, in use are %s. Run `feast -c %s apply`, then "
                "`spoor stream reload`",
                name, features.releases_folder, ", ".join(found.applied), features.feature_repo,
            )  # fmt: skip
    return found


def is_ours(registered: BaseFeatureView | FeatureService) -> bool:
    """Whether Spoor has made it, under whatever prefix."""
    return OWNER_TAG.items() <= dict(registered.tags).items()


def not_applied(features: FeatureSettings, what: str) -> UsageError:
    return UsageError(
        f"the Feast repo `{features.feature_repo}` is not applied: {what}",
        hint=f"run `feast -c {features.feature_repo} apply`",
    )


def _repo_config(features: FeatureSettings) -> RepoConfig:
    repo = features.feature_repo.absolute()
    file = repo / "feature_store.yaml"
    if not file.is_file():
        raise UsageError(
            f"`{features.feature_repo}` is not a Feast repo: it has no feature_store.yaml",
            hint="set features.feature_repo to the folder of your Feast repo",
        )
    try:
        config = load_repo_config(repo, file)
    except (FeastConfigError, FeastError, OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"cannot read `{file}`: {_what_is_wrong(error)}", hint="mend feature_store.yaml") from None
    if config.entity_key_serialization_version < KEY_VERSION:
        raise UsageError(
            f"`{file}`: entity_key_serialization_version is {config.entity_key_serialization_version}, "
            f"expected {KEY_VERSION}",
            hint="Feast dropped the earlier versions; set 3 and materialise again",
        )
    return config


def _what_is_wrong(error: object) -> str:
    """The error without the values that it found: a connection string holds a password."""
    if isinstance(error, FeastConfigError):
        return _what_is_wrong(error._error_message)
    if isinstance(error, ValidationError):
        found = error.errors(include_url=False, include_input=False)
        return "; ".join(
            _what_is_wrong(inner)
            if isinstance(inner := detail.get("ctx", {}).get("error"), ValidationError)
            else f"{'.'.join(map(str, detail['loc'])) or 'the file'}: {detail['msg']}"
            for detail in found
        )
    if isinstance(error, yaml.MarkedYAMLError):
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        return f"line {line} is no YAML: {error.problem}"
    return str(error)


@contextmanager
def _registry_errors(features: FeatureSettings) -> Iterator[None]:
    try:
        yield
    except (OSError, FeastError) as error:
        raise InfrastructureError(
            f"cannot reach the registry of `{features.feature_repo}`: {error}",
            hint="check `registry` in feature_store.yaml, the folder's permissions and free space",
        ) from error


def _swap_online_store(store: FeatureStore) -> GuardedStore:
    provider = store._get_provider()
    assert isinstance(provider, PassthroughProvider)
    kind = store.config.online_store
    if isinstance(kind, SqliteOnlineStoreConfig):
        guard = GuardedSqliteOnlineStore()
    elif isinstance(kind, RedisOnlineStoreConfig):
        guard = GuardedRedisOnlineStore()
    elif provider.online_store is not None:
        return UnguardedStore(provider.online_store)
    else:
        raise UsageError("feature_store.yaml names no online store", hint="add online_store to it")
    provider._online_store = guard
    return guard
