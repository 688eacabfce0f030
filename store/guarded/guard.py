"""What a guarded online store can do, over Feast's own layout and in serialised bytes.

`compare_and_set` is the heart: a user's rows in all views change or go together, and only if the revision in the
history view is still, byte for byte, the one that the writer read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Protocol

from feast import FeatureView
from feast.infra.online_stores.helpers import compute_versioned_name
from feast.repo_config import RepoConfig

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, eq=False)
class ViewRow:
    """One entity's values in one view: serialised `feast.types.Value` by feature."""

    view: FeatureView
    values: dict[str, bytes]
    event_time_ms: int
    created_ms: int


@dataclass(frozen=True, eq=False)
class GuardedWrite:
    key: bytes  # serialised entity key
    expected: bytes  # serialised revision, or NO_ROW
    rows: list[ViewRow]  # none: something is only removed
    removed: list[FeatureView] = field(default_factory=list)  # the entity's rows in these views go


class GuardedStore(Protocol):
    """Every method raises what its client library raises; store/online.py translates."""

    def read_values(
        self, config: RepoConfig, wanted: Sequence[tuple[FeatureView, str]], keys: Sequence[bytes]
    ) -> list[list[bytes | None]]:
        """Per key the values of (view, feature) in the order of `wanted`, all of one user from one moment."""
        ...

    def compare_and_set(
        self, config: RepoConfig, guard: tuple[FeatureView, str], writes: Sequence[GuardedWrite]
    ) -> list[bool]:
        """Per write whether it was done; False: the value of `guard` was not the expected one."""
        ...

    def put(self, config: RepoConfig, rows: Sequence[tuple[bytes, ViewRow]]) -> None:
        """Writes (key, row) pairs whatever was there."""
        ...

    def entity_keys(self, config: RepoConfig, guard: tuple[FeatureView, str], prefix: bytes) -> Iterator[bytes]:
        """The keys of all rows that have the feature `guard`."""
        ...

    def require_durable(self, config: RepoConfig) -> None:
        """Raises UsageError for a server that drops rows by itself; warns of one whose restart may lose them."""
        ...

    def create_tables(self, config: RepoConfig, views: Sequence[FeatureView]) -> None:
        """Makes room for the views where the store needs that; Feast does not for views that are `online=False`."""
        ...

    def delete_rows(self, config: RepoConfig, view: FeatureView) -> None:
        """Removes everything that the store holds of the view, and nothing else."""
        ...


def stored_name(config: RepoConfig, view: FeatureView) -> str:
    """The view's name in the store: with its version, where the registry keeps versions apart."""
    assert config.registry is not None
    return compute_versioned_name(view, config.registry.enable_online_feature_view_versioning)


def utc(time_ms: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=time_ms)
