"""Alert rules and dashboard ask for metrics that a worker exposes, and each alert has a test and an explanation."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from spoor.batch.forget import expire
from spoor.batch.forget.expire import ExpireResult
from spoor.batch.job_metrics import JobMetrics
from spoor.batch.kafka import archive
from spoor.batch.kafka.archive import ArchiveResult
from spoor.batch.users import backfill, verify
from spoor.batch.users.backfill import BackfillResult
from spoor.batch.users.verify import VerifyResult
from spoor.batch.users.verify_steps import KINDS
from spoor.streaming.settings import StreamSettings
from spoor.streaming.status.metrics import StreamMetrics

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
GRAFANA = ROOT / "deploy" / "grafana"
PROMTOOL_MISSING = "promtool is not installed: `apt-get install prometheus` brings it, then run again"
OF_PROMETHEUS = {"up", "ALERTS"}


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def exposed(families: Iterable[Metric]) -> dict[str, set[str]]:
    """Sample name → names of its labels."""
    found: dict[str, set[str]] = {}
    for sample in (sample for family in families for sample in family.samples):
        found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.fixture(scope="module")
def job_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the jobs leave behind."""
    folder = tmp_path_factory.mktemp("jobs")
    archived = ArchiveResult("activity", 1, 1, False, {}, bad={"not-json": 1})
    backfilled = BackfillResult("backfill-1", ("base-1",), None, 0, 1, 0, False)
    by_release = {"rows": {"base-1": 1}, "stale_rows": {"base-1": 0}}
    verified = VerifyResult(1, 0, {}, [], (), lag={0: 1}, remaining_kinds=dict.fromkeys(KINDS, 0), **by_release)
    for job, figures in (
        ("archive", archive.figures(archived)),
        ("backfill", backfill.figures(backfilled)),
        ("verify", verify.figures(verified)),
        ("expire", expire.figures(ExpireResult("expire-1", "2026-01-01T00:00:00+00:00", False))),
    ):
        JobMetrics(folder, job).ended(*figures)
    return folder / "metrics"


@pytest.fixture(scope="module")
def metrics(job_files: Path) -> dict[str, set[str]]:
    worker = StreamMetrics(lambda: {0: 1})  # there is no lag without a partition
    for by_release in (worker.rows, worker.stale_rows):
        by_release.expect("base-1")
    worker.step_seconds.labels("read")
    found = exposed(worker.registry.collect())
    for file in job_files.glob("*.prom"):
        found |= exposed(text_string_to_metric_families(file.read_text()))
    return found


RULES = [rule for group in read(PROMETHEUS / "alerts.yml")["groups"] for rule in group["rules"]]
ALERTS = [rule for rule in RULES if "alert" in rule]
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
TESTS = read(PROMETHEUS / "alerts.test.yml")["tests"]
PANELS = [panel for file in GRAFANA.glob("dashboards/*.json") for panel in json.loads(file.read_text())["panels"]]
EXPRESSIONS = [rule["expr"] for rule in RULES] + [target["expr"] for panel in PANELS for target in panel["targets"]]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_rules_and_panels_ask_for_metrics_and_labels_that_a_worker_exposes(
    expression: str, metrics: dict[str, set[str]]
):
    named = set(re.findall(r"\bspoor[a-z0-9_:]+", re.sub(r'"[^"]*"', "", expression)))
    of_worker = {name for name in named if name not in RECORDED}
    assert named or "up{" in expression
    assert of_worker <= metrics.keys(), sorted(of_worker - metrics.keys())
    grouped = {label.strip() for labels in re.findall(r"by \(([^)]*)\)", expression) for label in labels.split(",")}
    assert grouped <= set().union({"instance"}, *(metrics[name] for name in of_worker)), expression


def test_the_tests_of_the_alerts_feed_metrics_that_a_worker_exposes(metrics: dict[str, set[str]]):
    series = [series["series"] for test in TESTS for series in test["input_series"]]
    names = {text.partition("{")[0] for text in series}
    assert names <= metrics.keys() | OF_PROMETHEUS, sorted(names - metrics.keys())


@pytest.mark.parametrize("alert", [rule["alert"] for rule in ALERTS])
def test_every_alert_is_tested_both_ways_and_explained(alert: str):
    cases = [case for test in TESTS for case in test.get("alert_rule_test", ()) if case["alertname"] == alert]
    assert [case for case in cases if case.get("exp_alerts")], "no test in which it fires"
    assert [case for case in cases if not case.get("exp_alerts")], "no test in which it is silent"
    assert re.search(rf"^#+ {alert}$", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)


def test_every_alert_has_a_severity_and_says_what_it_means():
    for rule in ALERTS:
        assert rule["labels"]["severity"] in {"warning", "critical"}, rule["alert"]
        assert rule["annotations"].keys() == {"summary", "description"}, rule["alert"]


def test_promtool_agrees():
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip(PROMTOOL_MISSING)
    for arguments in (
        ["check", "config", "--syntax-only", "prometheus.yml"],
        ["check", "rules", "alerts.yml"],
        ["test", "rules", "alerts.test.yml"],
    ):
        done = subprocess.run([promtool, *arguments], cwd=PROMETHEUS, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_scrapes_the_port_that_the_containers_settings_serve():
    jobs = {job["job_name"]: job for job in read(PROMETHEUS / "prometheus.yml")["scrape_configs"]}
    (found,) = jobs["spoor-stream"]["dns_sd_configs"]
    settings = (ROOT / "deploy" / "spoor.toml").read_text()
    assert f"metrics_port = {found['port']}" in settings
    assert StreamSettings().metrics_port == 0  # served where it is asked for alone


def test_every_metric_of_a_worker_is_shown_or_watched(metrics: dict[str, set[str]]):
    asked = " ".join(EXPRESSIONS)
    families = {re.sub(r"_(total|bucket|sum|count|created)$", "", name) for name in metrics}
    assert [family for family in sorted(families) if family not in asked] == []


def test_the_dashboard_s_panels_do_not_overlap_and_read_the_provisioned_source():
    (source,) = read(GRAFANA / "provisioning" / "datasources" / "prometheus.yml")["datasources"]
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells
        assert panel["datasource"]["uid"] == source["uid"]
        assert panel["description"]
