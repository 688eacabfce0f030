"""The batch jobs on a genuine Flink give what they give in one process."""

from __future__ import annotations

import dataclasses
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

import spoor.batch.users.histories
from spoor.base.errors import InfrastructureError, UsageError
from spoor.batch.jobs import LOCAL, Runner
from spoor.batch.kafka.archive import run_archive
from spoor.batch.settings import FlinkSettings
from spoor.batch.users.backfill import BackfillResult, run_backfill
from spoor.batch.users.verify import run_verify
from spoor.config import Settings
from spoor.feature_repo.names import user_embedding_view
from spoor.services.flink import batch_runner
from tests.conftest import wait_until
from tests.flink_cluster import FlinkCluster, flink_cluster

Sql = Callable[..., dict[str, list[tuple]]]
Online = Callable[[Settings], dict[str, list[tuple]]]


def test_archive_backfill_and_verify_run_on_an_embedded_flink(
    world: Any, sql_histories: Sql, online_histories: Online, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In a state folder of an odd name: Flink's parser of arguments knows no path with spaces."""
    settings = dataclasses.replace(world.settings, state_folder=tmp_path / "Zuständé, [1] *{a}")
    monkeypatch.setattr(spoor.batch.users.histories, "GROUP_EVENTS", 30)  # several work items
    events = world.events(31, 300)
    world.produce(events[:200], 0)
    world.produce([*events[200:], b"no event"], 1)
    with batch_runner(settings, "flink", ()) as runner:
        archived = run_archive(settings, runner=runner)
        filled = run_backfill(settings, runner=runner)
        verified = run_verify(settings, runner=runner)
    assert (archived.events, archived.records, sum(archived.bad.values())) == (300, 301, 1)
    expected = sql_histories(events, 8)
    assert online_histories(settings) == expected
    assert filled.items > 2 and filled.rows == filled.changed == len(expected)
    assert (verified.users, verified.differences) == (len(expected), 0)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlinkCluster]:
    with flink_cluster(tmp_path_factory.mktemp("flink")) as found:
        yield found


def test_a_cluster_that_loses_a_task_manager_in_mid_job_ends_the_same(
    world: Any,
    sql_histories: Sql,
    online_histories: Online,
    cluster: FlinkCluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Python runs in worker pools beside the task managers. A lock on the store holds the job up until one is dead."""
    monkeypatch.setattr(spoor.batch.users.histories, "GROUP_EVENTS", 30)
    events = world.events(32, 300)
    world.produce(events, 0)
    run_archive(world.settings)
    flink = FlinkSettings(master=cluster.rest, environment="EXTERNAL", worker_pool=cluster.worker_pool, parallelism=2)
    settings = dataclasses.replace(world.settings, flink=flink)
    results: list[BackfillResult] = []
    with batch_runner(settings, "flink", ()) as runner:
        job = threading.Thread(target=lambda: results.append(run_backfill(settings, runner=runner)))
        with _locked_store(settings):
            job.start()
            wait_until(lambda: cluster.python_workers >= 2, "the job's Python runs beside both task managers")
            cluster.kill_a_task_manager()
        job.join()
        verified = run_verify(settings, runner=runner)
    (filled,) = results
    expected = sql_histories(events, 8)
    assert online_histories(settings) == expected
    assert filled.rows == len(expected)
    assert (verified.users, verified.differences) == (len(expected), 0)
    assert _offline_rows(settings) == len(expected)


def test_a_job_that_flink_cannot_run_is_an_infrastructure_error(world: Any) -> None:
    world.produce(world.events(33, 20), 0)
    with (
        batch_runner(world.settings, "flink", ("parallelism=0",)) as runner,
        pytest.raises(InfrastructureError, match="the Beam runner PortableRunner failed"),
    ):
        run_archive(world.settings, runner=runner)


def test_a_job_server_that_does_not_start_says_why(settings: Settings) -> None:
    small = dataclasses.replace(settings, flink=FlinkSettings(heap_mb=1))
    with pytest.raises(InfrastructureError, match="stopped while starting"), batch_runner(small, "flink", ()):
        pass


def test_names_of_runners_and_their_options_are_handed_on(settings: Settings) -> None:
    with batch_runner(settings, "local", ()) as runner:
        assert runner == LOCAL
    with batch_runner(settings, "SparkRunner", ("spark_master_url=local", "x=")) as runner:
        assert runner == Runner("SparkRunner", ("--spark_master_url=local", "--x="))
    with batch_runner(settings, "flink", (), start=False):
        assert not (settings.state_folder / "flink").exists()


@pytest.mark.parametrize(("name", "option"), [("flink", "parallelism"), ("DirectRunner", "=3"), ("local", "a=b")])
def test_options_that_say_nothing_are_refused(settings: Settings, name: str, option: str) -> None:
    with pytest.raises(UsageError, match="--runner-option"), batch_runner(settings, name, (option,)):
        pass


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"environment": "EXTERNAL"}, "worker_pool is empty"),
        ({"worker_pool": "localhost:1"}, "LOOPBACK takes none"),
        ({"master": "localhost:8081"}, "all Python runs in the submitting process"),
        ({"parallelism": 0}, "flink.parallelism is 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        FlinkSettings(**given)
    assert message in f"{raised.value.message} {raised.value.hint}"


@contextmanager
def _locked_store(settings: Settings) -> Iterator[None]:
    """Nobody writes to the SQLite store inside the block."""
    (path,) = (settings.state_folder / "feast").rglob("online*.db")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield


def _offline_rows(settings: Settings) -> int:
    import pyarrow.dataset as ds

    folder = settings.features.offline_folder / user_embedding_view("base-1")
    return ds.dataset(folder, format="parquet").count_rows()
