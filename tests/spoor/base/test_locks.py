"""One process at a time, also where the lock's file cannot say who has it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from spoor.base.errors import InfrastructureError
from spoor.base.locks import exclusive


def refused_while_held(path: Path, *, message: str) -> None:
    with (
        exclusive(path, job="spoor backfill"),
        pytest.raises(InfrastructureError, match=message),
        exclusive(path, job="spoor backfill"),
    ):
        pass


def test_a_second_holder_is_told_who_has_the_lock_until_it_is_given_back(tmp_path: Path) -> None:
    for _ in range(2):
        refused_while_held(tmp_path / "lock", message=f"`spoor backfill` already runs: process {os.getpid()}, started")


def test_a_lock_on_a_full_disk_holds_without_telling_by_whom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", refuse)
    refused_while_held(tmp_path / "lock", message="already runs: another process holds")


def test_a_lock_that_cannot_be_opened_is_an_infrastructure_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with (
        pytest.raises(InfrastructureError, match="lock file") as caught,
        exclusive(tmp_path / "file" / "lock", job="j"),
    ):
        pass
    assert caught.value.hint
