from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.metrics.metric import Metrics

import spoor.batch.jobs
from spoor.base.errors import DataError, InfrastructureError, SpoorError, UsageError
from spoor.batch.jobs import LOCAL, Failures, Runner, run_pipeline


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that a job itself notes can be written."""

    def refuse_file(path: Path, data: bytes) -> None:
        raise InfrastructureError(f"cannot write `{path}`: {os.strerror(errno.ENOSPC)}", hint="free some space")

    monkeypatch.setattr(spoor.batch.jobs, "atomic_write", refuse_file)


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


def _counted(number: int, *, folder: Path, fails: int) -> Iterator[int]:
    """Fails as a lost machine would: not by an error of Spoor's."""
    tries = len(list(folder.glob("try-*")))
    if tries < fails:
        (folder / f"try-{tries}").touch()
        raise RuntimeError("the machine is gone")
    Metrics.counter("test", "numbers").inc(number)
    yield number


def _run(folder: Path, runner: Runner, *, fails: int) -> dict[str, int]:
    def build(pipeline: beam.Pipeline) -> object:
        numbers = pipeline | beam.Create([2, 3], reshuffle=False)
        return numbers | beam.FlatMap(partial(_counted, folder=folder, fails=fails))

    return run_pipeline(build, runner=runner, failures=Failures(folder), namespace="test")


def test_a_job_that_its_runner_loses_is_run_again_and_counts_once(tmp_path: Path) -> None:
    assert _run(tmp_path, Runner(LOCAL.name, retries=2), fails=2) == {"numbers": 5}


def test_a_job_that_is_lost_too_often_is_an_infrastructure_error(tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match=r"Beam runner FnApiRunner failed: .*the machine is gone"):
        _run(tmp_path, Runner(LOCAL.name, retries=1), fails=2)
    assert len(list(tmp_path.glob("try-*"))) == 2
