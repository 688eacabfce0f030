"""The entities of Spoor's views: those that the repo has already, else Spoor's own.

Feast keeps one entity of a name. Two definitions of it in one repo would replace each other at every `feast apply`, so
Spoor registers its own only where the repo has none: none that was passed to `build`, none that a file of the repo
defines by its name, none in the registry.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

from feast import Entity, FeatureStore, ValueType
from feast.repo_config import RepoConfig, load_repo_config

from spoor.base.errors import UsageError
from spoor.feature_repo.settings import FeatureSettings, IdType


def user_entity(settings: FeatureSettings) -> Entity:
    """Spoor's own, as the settings describe it."""
    # A company has a user entity already: its name, join key and type are settings, so both can be one.
    return _entity(settings.user_entity, settings.user_join_key, settings.user_id_type)


def item_entity(settings: FeatureSettings) -> Entity:
    # The candidates that rankers score; its views hold vectors of the same space as the users'.
    return _entity(settings.item_entity, settings.item_join_key, settings.item_id_type)


def to_register(settings: FeatureSettings, ours: Entity, theirs: Entity | None) -> Entity | None:
    """What the definitions must return of an entity; None where the repo's own files return it.

    Raises UsageError where the repo's entity has another join key or type than the settings have.
    """
    if theirs is not None:
        check_shape(theirs, ours)
        return None
    if (defined := _defined(settings.feature_repo, ours)) is not None:
        check_shape(defined, ours)
        return None
    registered = _registered(settings.feature_repo, ours.name)
    if registered is not None:
        check_shape(registered, ours)
    return registered or ours  # as it is registered: then nothing changes


def check_shape(theirs: Entity, ours: Entity) -> None:
    """Raises UsageError where an entity of the repo is not the one that the settings describe."""
    found, wanted = (theirs.name, theirs.join_key), (ours.name, ours.join_key)
    if found == wanted and theirs.value_type in (ours.value_type, ValueType.UNKNOWN):
        return
    raise UsageError(
        f"entity `{theirs.name}` has join key {theirs.join_key} of type {theirs.value_type.name}, the settings say "
        f"entity `{ours.name}` with join key {ours.join_key} of type {ours.value_type.name}",
        hint="set features.user_entity, features.user_join_key and events.user_id_type (items: features.item_…) to "
        "what the repo has",
    )


def registry_file(repo: Path, config: RepoConfig) -> Path | None:
    """None for a registry that is not a local file."""
    assert config.registry is not None
    path = str(config.registry.path)
    if config.registry.registry_type != "file" or "://" in path:
        return None
    return repo.absolute() / path


def _entity(name: str, join_key: str, id_type: IdType) -> Entity:
    value_type = {"string": ValueType.STRING, "int64": ValueType.INT64}[id_type]
    return Entity(name=name, join_keys=[join_key], value_type=value_type)


def _defined(repo: Path, ours: Entity) -> Entity | None:
    """The entity of our name that a file which Feast imports of this repo defines, `Entity(name="…")`, as far as it is
    written out there: what is computed counts as ours."""
    from feast.repo_operations import get_repo_files

    for path in get_repo_files(repo.absolute()) if repo.is_dir() else []:
        try:
            tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue  # Feast imports the file too, and says what is wrong with it
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and _name_of(node.func) == "Entity":
                given = {keyword.arg: keyword.value for keyword in node.keywords}
                if _literal(given.get("name")) == ours.name:
                    return _as_given(given, ours)
    return None


def _as_given(given: Mapping[str | None, ast.expr], ours: Entity) -> Entity:
    keys, kind = [ours.name], ValueType.UNKNOWN
    if "join_keys" in given:
        written = _literal(given["join_keys"])
        keys = written if isinstance(written, list) and len(written) == 1 else [ours.join_key]
    if "value_type" in given:
        kind = ValueType.__members__.get(_name_of(given["value_type"]), ValueType.UNKNOWN)
    return Entity(name=ours.name, join_keys=keys, value_type=kind)


def _name_of(node: ast.expr) -> str:
    """The last part of a name with dots."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _literal(node: ast.expr | None) -> object:
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        return None


def _registered(repo: Path, name: str) -> Entity | None:
    """Of a registry that is there already: to open it is not to make it."""
    file = repo.absolute() / "feature_store.yaml"
    if not file.is_file():
        return None
    config = load_repo_config(repo.absolute(), file)
    registry = registry_file(repo, config)
    if registry is not None and not registry.exists():
        return None
    entities = FeatureStore(repo_path=str(repo.absolute()), config=config).list_entities()
    return next((entity for entity in entities if entity.name == name), None)
