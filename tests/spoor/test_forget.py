"""How `spoor forget` and `spoor merge-users` tell what they did; tests/batch holds that against real servers."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spoor.batch.forget.expire import ExpireResult, Holds
from spoor.batch.forget.forget import ForgetResult
from spoor.batch.forget.merge_users import MergeResult
from spoor.batch.kafka.retention import Kept

KEPT = [
    Kept("activity", "2026-02-01T00:00:00+00:00", "retention.ms + segment.ms"),
    Kept("letters", None, "until closed"),
]
FORGOT = ForgetResult(
    "forget-1", 2, 1, 1_769_904_000_000, False, lake_rows=1200, offline_rows=6, topics=("t",), kept=KEPT
)
EXPIRED = ExpireResult(
    "expire-1",
    "2026-01-01T00:00:00+00:00",
    False,
    removed=1200,
    waiting=3,
    changed=1,
    returned=4,
    listed=1201,
    unfinished=2,
    holds=(Holds("letters", "2026-01-08T00:00:00+00:00"),),
)
MERGED = MergeResult("merge-1", 7, 1_769_904_000_000, False, changed=True, kept=KEPT)


def test_forgetting_tells_counts_without_ids_and_what_kafka_keeps(
    spoor: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    asked: list[Any] = []

    def run_forget(_: Any, users: list[str], **options: Any) -> ForgetResult:
        asked.append((users, options))
        return dataclasses.replace(FORGOT, dry_run=options["dry_run"])

    monkeypatch.setattr("spoor.batch.forget.forget.run_forget", run_forget)
    Path("ids").write_text("bob\ncy\n")
    done = spoor("forget", "--user", "ann", "--users-from", "ids", "--through", "2026-02-01T00:00:00Z", "--yes")
    assert done.code == 0
    assert done.out == (
        "forget-1: 2 users, 1 of them online, forgotten through 2026-02-01 00:00:00Z; "
        "1,200 events left the lake, 6 rows the offline log; 1 embedding topics\n"
    )
    assert "activity: until 2026-02-01T00:00:00+00:00 (retention.ms + segment.ms)" in done.err
    assert "letters: no date (until closed)" in done.err
    planned = spoor("forget", "--user", "ann", "--dry-run")
    assert "to be forgotten through" in planned.out and "1,200 events would leave the lake" in planned.out
    assert spoor("forget", "--user", "ann", "--yes", "--json").json["kept"][1]["until"] is None
    assert asked[0] == (["ann", "bob", "cy"], {"through_ms": 1_769_904_000_000, "dry_run": False})
    assert [users for users, _ in asked[1:]] == [["ann"], ["ann"]]


def test_expiring_tells_counts_and_what_holds_markers_back_and_takes_no_users(
    spoor: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    asked: list[Any] = []

    def run_expire(_: Any, **options: Any) -> ExpireResult:
        asked.append(options)
        return dataclasses.replace(EXPIRED, dry_run=options["dry_run"])

    monkeypatch.setattr("spoor.batch.forget.expire.run_expire", run_expire)
    monkeypatch.setattr("spoor.broker.reach.require_broker", lambda _: None)
    monkeypatch.setattr("spoor.streaming.orders.replay.oldest_letter_ms", lambda _: 5)
    done = spoor("forget", "--expire", "--yes")
    assert done.code == 0
    assert done.out == (
        "expire-1: of users forgotten before 2026-01-01T00:00:00+00:00 1,200 markers are gone, "
        "and 1,201 entries of the lake's list; 3 markers wait, 4 users have returned; 1 were written meanwhile; "
        "2 users are not forgotten to the end: run `spoor forget` for them again\n"
    )
    assert "letters: oldest of 2026-01-08T00:00:00+00:00" in done.err
    assert "1,200 markers would go" in spoor("forget", "--expire", "--dry-run", "--grace", "30d").out
    assert spoor("forget", "--expire", "--yes", "--json").json["holds"] == [
        {"what": "letters", "since": "2026-01-08T00:00:00+00:00"}
    ]
    week_ms = 7 * 86_400_000
    assert asked[0] == {"grace_ms": week_ms, "oldest_letter_ms": 5, "dry_run": False}
    assert asked[1] == {"grace_ms": 30 * 86_400_000, "oldest_letter_ms": 5, "dry_run": True}
    for more in (("--user", "ann"), ("--users-from", "ids"), ("--through", "2026-02-01T00:00:00Z")):
        assert "--expire concerns everybody" in spoor("forget", "--expire", "--yes", *more).failed_with(2)
    assert "belongs to --expire" in spoor("forget", "--user", "ann", "--yes", "--grace", "30d").failed_with(2)
    assert "nobody is there to confirm" in spoor("forget", "--expire").failed_with(2)
    assert len(asked) == 3


def test_merging_tells_counts_without_ids(spoor: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        "spoor.batch.forget.merge_users.run_merge_users",
        lambda _, old, new, dry_run: dataclasses.replace(MERGED, dry_run=dry_run) if (old, new) == ("a", "b") else None,
    )
    done = spoor("merge-users", "--from", "a", "--to", "b", "--yes")
    assert done.out == "merge-1: 7 events moved; the old id is forgotten through 2026-02-01 00:00:00Z\n"
    assert "activity: until" in done.err
    planned = spoor("merge-users", "--from", "a", "--to", "b", "--dry-run")
    assert planned.out == "merge-1: 7 events to move; the old id to be forgotten through 2026-02-01 00:00:00Z\n"
