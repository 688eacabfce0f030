"""The switch of the services `ranker` and `aligned_ranker_<space>` to a release, and what must be true before.

A release may be served when everybody who has a history online has an embedding of exactly that history, and every item
that the release knows has its vector. `coverage` asks the store for revisions, not for what an encoder would compute:
whether the vectors are right is what `spoor verify` tells.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from feast import FeatureStore, OnDemandFeatureView
from feast.base_feature_view import BaseFeatureView

from spoor.base.errors import UsageError
from spoor.base.files import atomic_write
from spoor.feature_repo.names import PROMOTED_RANKER, aligned_ranker
from spoor.feature_repo.releases import PROMOTED_FILE, live_releases, promotion
from spoor.feature_repo.settings import FeatureSettings
from spoor.store.feast_store import is_ours, open_feature_store
from spoor.store.online import OnlineStore
from spoor.store.repo import Applied, apply

_CHUNK_USERS = 10_000
_MAX_EXAMPLES = 5


@dataclass(frozen=True)
class Coverage:
    """How much of a release the online store holds."""

    users: int  # that have events
    missing: int  # of these, without an embedding of the release
    behind: int  # of these, with an embedding of an earlier revision of their history
    items: int  # that the release knows, and Feast's entity can hold
    items_missing: int  # of these, without a vector
    examples: tuple[str, ...]  # some of the users that are missing or behind

    @property
    def complete(self) -> bool:
        return not (self.missing or self.behind or self.items_missing)


def coverage(
    online: OnlineStore,
    release: str,
    item_ids: Sequence[str],
    *,
    wait_seconds: float = 0.0,
    progress: Callable[[int], None] = lambda users: None,
) -> Coverage:
    """One pass over everybody who has a history, and over the release's items (`item_ids`). A user that is written
    meanwhile is counted as found at the moment of its read; whose embedding was behind then has `wait_seconds` after
    the pass to reach the revision that was seen. `progress` hears how many users were read.

    Raises UsageError for a release that Feast does not know or a store that cannot list its users,
    InfrastructureError where the store does not answer.
    """
    users = missing = 0
    waiting: dict[str, int] = {}  # who is behind → the history's revision that was seen
    examples: list[str] = []
    for chunk in online.user_chunks(_CHUNK_USERS):
        for user_id, stored in zip(chunk, online.read(chunk, [release]), strict=True):
            if not stored.has_events:
                continue  # gone since it was listed, or forgotten
            users += 1
            have = stored.embedding_revisions[release]
            missing += have is None
            if have is None and len(examples) < _MAX_EXAMPLES:
                examples.append(user_id)
            if have not in (None, stored.revision):
                waiting[user_id] = stored.revision
        progress(len(chunk))
    behind = _behind_after(online, release, waiting, seconds=wait_seconds)
    examples += behind[: _MAX_EXAMPLES - len(examples)]
    items = [item for item in item_ids if online.holds_item(item)]  # a backfill writes no others, and names them
    items_missing = len(items) - online.count_items(release, items)
    return Coverage(users, missing, len(behind), len(items), items_missing, tuple(examples))


def _behind_after(online: OnlineStore, release: str, waiting: Mapping[str, int], *, seconds: float) -> list[str]:
    """Which of the users (→ revision) have no embedding of that revision or a later one, `seconds` from now."""
    deadline = time.monotonic() + seconds
    while waiting and time.monotonic() < deadline:
        time.sleep(min(1.0, seconds))
        stored = online.read(list(waiting), [release])
        waiting = {
            user: revision
            for (user, revision), now in zip(waiting.items(), stored, strict=True)
            if now.has_events and (now.embedding_revisions[release] or 0) < revision
        }
    return list(waiting)


def promote(features: FeatureSettings, release: str, *, now_ms: int) -> Applied:
    """Notes the release in the releases folder, by which `feast apply` and Spoor agree, then registers the definitions:
    the service `ranker`, and that of the release's space, is from then on that of the release. Run again, it finishes
    what was interrupted.

    Raises UsageError where one of the names is somebody else's, DataError for a damaged note, InfrastructureError.
    """
    folder = features.releases_folder
    spaces = {live.name: live.space for live in live_releases(folder)}
    space = spaces[release]
    check_aliases_are_ours(features, space)
    before = promotion(folder)
    served = {} if before is None else {s: name for s, name in before.aligned.items() if spaces.get(name) == s}
    aligned = served | {space: release}
    if before is None or before.release != release or before.aligned != aligned:
        previous = None if before is None else before.previous if before.release == release else before.release
        note = {
            "release": release,
            "previous": previous,
            "promoted_at_ms": now_ms,
            "aligned": aligned,
            "previous_aligned": served.get(space),
        }
        atomic_write(folder / PROMOTED_FILE, json.dumps(note).encode())
    return apply(features, "keep")


def check_aliases_are_ours(features: FeatureSettings, space: str) -> None:
    """Raises UsageError where a service `ranker`, or that of the space, is registered that Spoor has not made."""
    store, _ = open_feature_store(features)
    names = (features.named(PROMOTED_RANKER), features.named(aligned_ranker(space)))
    for service in store.list_feature_services():
        if service.name in names and not is_ours(service):
            raise UsageError(
                f"Feast has a service `{service.name}` that is not Spoor's",
                hint="set features.prefix, or give that service another name; rankers can also pin a release's service",
            )


def used_by(store: FeatureStore, views: Sequence[str], *, except_for: Sequence[str] = ()) -> tuple[str, ...]:
    """What the registry has on these views, in words: services, and views that are computed from them, also by way of
    such a view. `except_for`: names of services that go with the views."""
    found: dict[str, str] = {}
    reached, more = set(views), True
    while more:
        more = False
        for view in store.list_all_feature_views():
            if view.name not in reached and reached & _source_views(view):
                found[view.name] = f"view `{view.name}`"
                reached.add(view.name)
                more = True
    for service in store.list_feature_services():
        shown = {projection.name for projection in service.feature_view_projections}
        if service.name not in except_for and reached & shown:
            found[f"service {service.name}"] = f"service `{service.name}`"
    return tuple(sorted(found.values()))


def _source_views(view: BaseFeatureView) -> set[str]:
    if isinstance(view, OnDemandFeatureView):
        return {projection.name for projection in view.source_feature_view_projections.values()}
    return {source.name for source in getattr(view, "source_views", None) or ()}


def cache_seconds(store: FeatureStore) -> int | None:
    """How long a reader with the same feature_store.yaml may go on with the registry that it has read: 0 where Feast
    looks at the file's time at each use, None where it never reads the registry again (docs/releases.md)."""
    registry = store.config.registry
    assert registry is not None
    local = registry.registry_type == "file" and "://" not in str(registry.path)
    if local and registry.cache_mode == "sync":
        return 0
    return registry.cache_ttl_seconds or None
