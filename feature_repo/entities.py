"""The entities of Spoor's views: the repo's existing ones, else Spoor's own.

Feast keeps one entity per name. Two definitions of it in one repo would replace each other at every `feast apply`. So
Spoor registers its own only if the repo has none: none passed to `build`, none defined by its name in a file of the
repo, none in the registry.
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
    """Spoor's own user entity, from the settings."""
    # A company has a user entity already: with its name, join key and type in the settings, both are one.
    return _entity(settings.user_entity, settings.user_join_key, settings.user_id_type)


def item_entity(settings: FeatureSettings) -> Entity:
    # The candidates of rankers; its views hold vectors of the same space as the users'.
    return _entity(settings.item_entity, settings.item_join_key, settings.item_id_type)


def to_register(settings: FeatureSettings, user: Entity | None, item: Entity | None) -> list[Entity]:
    """The entities that the definitions must return: those that neither the caller gave (`user`, `item`) nor a file of
    the repo defines. A registered entity is returned unchanged.

    Raises UsageError if an entity of the repo has another join key or type than the settings have.
    """
    repo, ours = settings.feature_repo, (user_entity(settings), item_entity(settings))
    missing = [own for own, given in zip(ours, (user, item), strict=True) if not _fits(given, own)]
    defined = _defined(repo, {own.name: own for own in missing})
    missing = [own for own in missing if not _fits(defined.get(own.name), own)]
    registered = _registered(repo) if missing else {}
    return [registered[own.name] if _fits(registered.get(own.name), own) else own for own in missing]


def _fits(theirs: Entity | None, ours: Entity) -> bool:
    if theirs is not None:
        check_shape(theirs, ours)
    return theirs is not None


def check_shape(theirs: Entity, ours: Entity) -> None:
    """Raises UsageError if an entity of the repo differs from that of the settings."""
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
    """The registry's local file; None for other registries."""
    assert config.registry is not None
    path = str(config.registry.path)
    if config.registry.registry_type != "file" or "://" in path:
        return None
    return repo.absolute() / path


def _entity(name: str, join_key: str, id_type: IdType) -> Entity:
    value_type = {"string": ValueType.STRING, "int64": ValueType.INT64}[id_type]
    return Entity(name=name, join_keys=[join_key], value_type=value_type)


def _defined(repo: Path, ours: Mapping[str, Entity]) -> dict[str, Entity]:
    """The entities with our names that files of this repo define, `Entity(name="…")`. Only literal arguments are read;
    computed ones count as ours."""
    from feast.repo_operations import get_repo_files

    found: dict[str, Entity] = {}
    for path in get_repo_files(repo.absolute()) if ours and repo.is_dir() else []:
        try:
            tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue  # Feast imports the file too, and reports its error
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and _name_of(node.func) == "Entity":
                given = {keyword.arg: keyword.value for keyword in node.keywords}
                name = _literal(given.get("name"))
                if isinstance(name, str) and name in ours:
                    found.setdefault(name, _as_given(given, ours[name]))
    return found


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


def _registered(repo: Path) -> dict[str, Entity]:
    """The entities in an existing registry, by name. A missing registry is not opened, as that would create it."""
    file = repo.absolute() / "feature_store.yaml"
    if not file.is_file():
        return {}
    config = load_repo_config(repo.absolute(), file)
    registry = registry_file(repo, config)
    if registry is not None and not registry.exists():
        return {}
    store = FeatureStore(repo_path=str(repo.absolute()), config=config)
    return {entity.name: entity for entity in store.list_entities()}
