from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

import batch.jobs
from activity.errors import DataError, InfrastructureError, SpoorError, UsageError
from batch.jobs import Failures


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that a job itself notes can be written."""

    def refuse_file(path: Path, data: bytes) -> None:
        raise InfrastructureError(f"cannot write `{path}`: {os.strerror(errno.ENOSPC)}", hint="free some space")

    monkeypatch.setattr(batch.jobs, "atomic_write", refuse_file)


def _fail(failures: Failures, error: SpoorError) -> None:
    with pytest.raises(type(error)), failures.recorded():
        raise error


@pytest.mark.parametrize("kind", [DataError, InfrastructureError, UsageError])
def test_an_error_crosses_processes_with_its_hint_and_exit_code(tmp_path: Path, kind: type[SpoorError]) -> None:
    _fail(Failures(tmp_path), kind("the message", hint="the hint"))
    with pytest.raises(kind, match=r"^the message$") as caught:
        Failures(tmp_path).raise_recorded()
    assert caught.value.hint == "the hint"


@pytest.mark.usefixtures("full_disk")
def test_on_a_full_disk_the_first_error_arrives_and_not_that_of_recording_it(tmp_path: Path) -> None:
    _fail(Failures(tmp_path), InfrastructureError("cannot write the lake", hint="check free space"))
    with pytest.raises(InfrastructureError, match=r"^cannot write the lake$") as caught:
        Failures(tmp_path).raise_recorded()
    assert caught.value.hint == "check free space"
    Failures(tmp_path).raise_recorded()  # told once


@pytest.mark.usefixtures("full_disk")
def test_an_error_of_an_earlier_run_is_not_told_again(tmp_path: Path) -> None:
    failures = Failures(tmp_path)
    _fail(failures, DataError("earlier"))
    failures.clear()
    failures.raise_recorded()
