"""How `spoor forget` and `spoor merge-users` tell what they did; tests/batch holds that against real servers."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batch.forget import ForgetResult
from batch.merge_users import MergeResult
from batch.retention import Kept

KEPT = [
    Kept("activity", "2026-02-01T00:00:00+00:00", "retention.ms + segment.ms"),
    Kept("letters", None, "until closed"),
]
FORGOT = ForgetResult(
    "forget-1", 2, 1, 1_769_904_000_000, False, lake_rows=1200, offline_rows=6, topics=("t",), kept=KEPT
)
MERGED = MergeResult("merge-1", 7, 1_769_904_000_000, False, changed=True, kept=KEPT)


def test_forgetting_tells_counts_without_ids_and_what_kafka_keeps(
    spoor: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    asked: list[Any] = []

    def run_forget(_: Any, users: list[str], **options: Any) -> ForgetResult:
        asked.append((users, options))
        return dataclasses.replace(FORGOT, dry_run=options["dry_run"])

    monkeypatch.setattr("batch.forget.run_forget", run_forget)
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


def test_merging_tells_counts_without_ids(spoor: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        "batch.merge_users.run_merge_users",
        lambda _, old, new, dry_run: dataclasses.replace(MERGED, dry_run=dry_run) if (old, new) == ("a", "b") else None,
    )
    done = spoor("merge-users", "--from", "a", "--to", "b", "--yes")
    assert done.out == "merge-1: 7 events moved; the old id is forgotten through 2026-02-01 00:00:00Z\n"
    assert "activity: until" in done.err
    planned = spoor("merge-users", "--from", "a", "--to", "b", "--dry-run")
    assert planned.out == "merge-1: 7 events to move; the old id to be forgotten through 2026-02-01 00:00:00Z\n"
