"""Files for node exporter: whole, readable, and no reason for a job to fail."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from spoor.batch.job_metrics import JobMetrics, gauge, gauges
from spoor.batch.progress import progress
from tests.permissions import bound_by_permissions


def samples(path: Path) -> dict[tuple[str, ...], float]:
    families = text_string_to_metric_families(path.read_text())
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


def test_a_running_job_tells_its_items_and_an_ended_one_its_figures(tmp_path: Path):
    metrics = JobMetrics(tmp_path, "verify", clock=iter([100.0, 160.0]).__next__)
    metrics.items(done=2, planned=5)
    assert samples(metrics.running_file) == {
        ("spoor_job_started_timestamp_seconds", "verify"): 100.0,
        ("spoor_job_items", "verify"): 5.0,
        ("spoor_job_items_done", "verify"): 2.0,
    }
    assert not metrics.ended_file.exists()
    metrics.ended(gauge("spoor_a", "text", 3), gauges("spoor_b", "text", "kind", {"x": 1, "y": 0}))
    assert samples(metrics.ended_file) == {
        ("spoor_job_ended_timestamp_seconds", "verify"): 160.0,
        ("spoor_a",): 3.0,
        ("spoor_b", "x"): 1.0,
        ("spoor_b", "y"): 0.0,
    }


def test_a_run_without_work_clears_what_a_killed_one_left(tmp_path: Path):
    JobMetrics(tmp_path, "archive").items(done=3, planned=4)
    again = JobMetrics(tmp_path, "archive")
    again.ended()
    assert samples(again.running_file)["spoor_job_items", "archive"] == 0


def test_progress_counts_to_the_end_and_a_killed_job_s_count_stays(tmp_path: Path):
    finished: set[str] = set()
    metrics = JobMetrics(tmp_path, "backfill")

    def done() -> float:
        return samples(metrics.running_file)["spoor_job_items_done", "backfill"]

    with pytest.raises(RuntimeError), progress("backfill", total=2, finished=lambda: set(finished), metrics=metrics):
        assert done() == 0
        finished.add("one")
        raise RuntimeError("killed")
    assert done() == 1


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    tmp_path.chmod(0o555)
    try:
        with bound_by_permissions():
            JobMetrics(tmp_path, "archive").items(done=0, planned=1)
    finally:
        tmp_path.chmod(0o755)
    assert "cannot write" in caplog.text
