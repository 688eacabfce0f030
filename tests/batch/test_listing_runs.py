"""Tasks that a cluster works on after the driver has ended, and the next run has begun."""

import os
from pathlib import Path
from typing import Any

import pytest

from spoor.base.errors import InfrastructureError
from spoor.base.files import Manifest
from spoor.batch.users.export import ExportItem, WriteVectors
from spoor.batch.users.listing import list_users, listing_folder
from spoor.batch.users.verify_steps import VerifyBuckets


def lists(work: Path) -> None:
    list_users([f"user-{n}" for n in range(20)], work / "users", buckets=2)
    list_users([], work / "online", buckets=2)


def test_runs_have_folders_of_their_own_and_leave_nothing(tmp_path: Path) -> None:
    with listing_folder(tmp_path, "export") as first:
        lists(first)
    assert not first.exists()
    with listing_folder(tmp_path, "export") as second:
        assert second != first and os.listdir(second.parent) == [second.name]


def test_a_task_of_an_ended_run_stops_and_writes_nothing(filled: Any, tmp_path: Path) -> None:
    settings = filled.settings
    with listing_folder(settings.state_folder, "export") as ended:
        lists(ended)
    target = tmp_path / "vectors"
    with listing_folder(settings.state_folder, "export") as running:
        for work, stops in ((ended, True), (running, False)):
            lists(work) if not stops else None
            task = WriteVectors(settings.features, settings.kernels, ["base-1"], work, target)
            task.setup()
            if stops:
                with pytest.raises(InfrastructureError, match="has ended"):
                    list(task.process(ExportItem("b00", bucket=0)))
                assert not ended.exists() and not target.exists()
            else:
                list(task.process(ExportItem("b00", bucket=0)))
        assert Manifest(running / "manifest").keys() == {"b00"}


def test_a_verification_of_an_ended_run_reports_to_nobody(filled: Any) -> None:
    settings = filled.settings
    with listing_folder(settings.state_folder, "verify") as ended:
        lists(ended)
    task = VerifyBuckets(settings, ["base-1"], ended, repair=False)
    task.setup()
    with pytest.raises(InfrastructureError, match="has ended"):
        list(task.process((0,)))
    assert not ended.exists()
