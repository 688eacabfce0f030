"""Who is behind at the end of a backfill is encoded again, and published, until nobody is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from spoor.activity.history import Histories, group_events, history_values
from spoor.base.errors import InfrastructureError
from spoor.batch.kafka.archive import run_archive
from spoor.batch.releases import encoders
from spoor.batch.users.backfill import run_backfill
from spoor.batch.users.sweep import Swept, sweep
from spoor.batch.users.verify import run_verify
from spoor.config import Settings
from spoor.store.online import OnlineStore, open_online
from spoor.store.rows import EmbeddingRow
from spoor.store.writer import GuardedWriter

Last = Callable[[Settings, str], dict[str, EmbeddingRow]]
BOTH = ["base-1", "base-2"]


@pytest.fixture
def filled(world: Any) -> Any:
    """Two releases, everybody's embedding of both online."""
    world.add_release("base-2", seed=1)
    world.produce(world.events(51, 200), 0)
    run_archive(world.settings)
    assert run_backfill(world.settings).swept == 0
    return world


def old_worker_writes(world: Any, seed: int, count: int) -> set[str]:
    """As a worker that was started before base-2 arrived; returns the users whose history changed."""
    events = world.events(seed, count)
    users, histories = _grouped(events)
    online = open_online(world.settings.features)
    writer = GuardedWriter(
        online,
        list(encoders(world.settings.features, world.settings.kernels, ["base-1"]).values()),
        history=world.settings.history,
    )
    result = writer.update(users, histories, as_of_ms=np.full(len(users), max(event.timestamp for event in events)))
    return {user for user, changed in zip(users, result.changed, strict=True) if changed}


def behind(online: OnlineStore) -> set[str]:
    users = sorted(online.user_ids())
    return {
        user
        for user, stored in zip(users, online.read(users, BOTH), strict=True)
        if set(stored.embedding_revisions.values()) != {stored.revision}
    }


def test_a_release_that_an_old_worker_left_behind_is_brought_up_and_published(filled: Any, last_records: Last) -> None:
    settings = filled.settings
    online = open_online(settings.features)
    changed = old_worker_writes(filled, 52, 30)
    assert changed and behind(online) == changed
    assert sweep(settings, online, BOTH, publish=True, chunk=7) == Swept(users=len(changed), passes=2)
    assert behind(online) == set()
    published = last_records(settings, "base-2")
    for user, stored in zip(sorted(changed), online.read(sorted(changed), BOTH), strict=True):
        assert published[user].revision == stored.revision


def test_a_backfill_ends_with_it(filled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old worker writes between the last slice of the backfill and its sweep."""
    changed: set[str] = set()

    def written_meanwhile(*arguments: Any, **options: Any) -> Swept:
        changed.update(old_worker_writes(filled, 53, 30))
        return sweep(*arguments, **options)

    monkeypatch.setattr("spoor.batch.users.backfill.sweep", written_meanwhile)
    result = run_backfill(filled.settings)
    assert result.swept == len(changed) > 0
    kinds = run_verify(filled.settings).kinds
    assert kinds["revision behind"] == kinds["embedding differs"] == 0


def test_a_release_that_no_worker_writes_is_not_swept(filled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under traffic it would be behind for ever."""
    swept: list[str] = []
    monkeypatch.setattr(
        "spoor.batch.users.backfill.sweep", lambda settings, online, releases, **_: swept.extend(releases) or Swept()
    )
    settings = filled.settings
    run_backfill(replace(settings, stream=replace(settings.stream, releases=("base-1",))))
    assert swept == ["base-1"]


def test_whether_workers_write_the_releases_is_asked_before_the_pass_that_finds_nobody(filled: Any) -> None:
    """Asked after it, a worker could have written in between, and taken the release up since."""
    old_worker_writes(filled, 54, 30)
    asked: list[set[str]] = []

    def unwritten(releases: Sequence[str]) -> list[str]:
        asked.append(behind(open_online(filled.settings.features)))
        return ["base-2"] if len(asked) == 1 else []

    result = run_backfill(filled.settings, resume=True, unwritten=unwritten)
    assert [bool(users) for users in asked] == [True, False]
    assert result.unwritten == ()
    result = run_backfill(filled.settings, resume=True, unwritten=lambda releases: ["base-2"])
    assert result.unwritten == ("base-2",)


def test_forgotten_users_are_not_behind(filled: Any) -> None:
    settings = filled.settings
    online = open_online(settings.features)
    user = next(online.user_ids())
    writer = GuardedWriter(
        online, list(encoders(settings.features, settings.kernels, BOTH).values()), history=settings.history
    )
    through = np.array([2**45])
    writer.update([user], Histories.empty(1), as_of_ms=np.zeros(1, np.int64), forget_through=through)
    assert sweep(settings, online, BOTH, publish=False) == Swept(users=0, passes=1)


def written_before_every_pass(world: Any, monkeypatch: pytest.MonkeyPatch) -> OnlineStore:
    """A store that an old worker writes to whenever its users are listed."""
    online = open_online(world.settings.features)
    user_ids, seeds = online.user_ids, iter(range(100, 200))

    def written_first() -> Any:
        old_worker_writes(world, next(seeds), 5)
        return user_ids()

    monkeypatch.setattr(online, "user_ids", written_first)
    return online


def test_users_that_fall_behind_for_ever_are_an_error(filled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    online = written_before_every_pass(filled, monkeypatch)
    with pytest.raises(InfrastructureError, match="still fall behind"):
        sweep(filled.settings, online, BOTH, publish=False)


def test_with_a_floor_between_two_encodes_who_waits_on_purpose_holds_nothing_up(
    filled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers write both releases; hot users fall behind before every pass, and will follow."""
    online = written_before_every_pass(filled, monkeypatch)
    settings = replace(filled.settings, stream=replace(filled.settings.stream, encode_seconds=5.0))
    asked = iter([["base-2"], []])
    found = sweep(settings, online, BOTH, publish=False, unwritten=lambda releases: next(asked))
    assert found.passes == 2 and found.users > 0 and found.unwritten == ()


def _grouped(events: Sequence[Any]) -> tuple[list[str], Histories]:
    import pyarrow as pa

    from spoor.activity.events import EVENT_SCHEMA

    columns = list(zip(*events, strict=True))
    arrays = [pa.array(column, field.type) for column, field in zip(columns, EVENT_SCHEMA, strict=True)]
    table = pa.table(arrays, schema=EVENT_SCHEMA)
    return group_events(table["user_id"].to_pylist(), history_values(table), max_events=8)
