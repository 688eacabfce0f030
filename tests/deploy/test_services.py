"""Every Spoor service of docker-compose.yml does its work outside a container: the same command, settings files and
health check, genuine servers with the settings that their containers get."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import duckdb
import psutil
import pytest
import redis
from kafka import KafkaProducer
from prometheus_client.parser import text_string_to_metric_families

from spoor.activity.events import Event, encode_event
from tests.conftest import free_port, wait_until
from tests.deploy.conftest import ITEMS, ROOT, Stack, compose
from tests.redis_servers import RedisServer

USERS, START_MS = 25, 1_750_000_000_000
EVENTS = [
    Event(f"user-{n % USERS}", ITEMS[n % len(ITEMS)], "view", "home", START_MS + 1000 * n) for n in range(10 * USERS)
]
FLINK = ["flink-job-manager", "flink-task-manager", "flink-worker-pool", "beam-job-server"]
RUN_HERE = [
    "apply",
    "topics",
    "stream",
    "archive",
    "backfill",
    "verify",
    "expire",
    "feature-server",
    "release",
    "backfill-on-flink",
    *FLINK,
]


@pytest.fixture(scope="module", autouse=True)
def codes(stack: Stack) -> dict[str, int]:
    """Everything once, in the order in which an operator meets it; the exit code of each service."""
    codes = {first: stack.run(first) for first in ("topics", "apply")}
    for first, code in codes.items():
        assert code == 0, stack.log(first)
    worker = stack.start("stream")
    try:

        def healthy() -> bool:
            assert worker.poll() is None, stack.log("stream")
            return stack.healthy("stream") and "partitions 0 1 2 3" in stack.log("stream")

        wait_until(healthy, "the stream's health check passes")
        shown = psutil.Process(worker.pid).cmdline()
        assert not [word for word in shown for password in stack.passwords() if password in word]
        settings = stack.settings("stream")
        with KafkaProducer(**settings.kafka.client_options()) as producer:
            for event in EVENTS:
                producer.send(settings.kafka.topic, key=event.user_id.encode(), value=encode_event(event))
            producer.send(settings.kafka.topic, key=b"odd", value=b"not json")

        def taken() -> int:
            lines = [line for line in stack.log("stream").splitlines() if "batch records=" in line]
            return sum(int(line.partition("records=")[2].split()[0]) for line in lines)

        wait_until(lambda: taken() == len(EVENTS) + 1, "the worker has taken every record")
        worker.send_signal(signal.SIGTERM)
        codes["stream"] = worker.wait(120)
    finally:
        worker.kill()
    for one_shot in ("archive", "backfill", "verify", "expire"):
        codes[one_shot] = stack.run(one_shot)
    return codes


@pytest.fixture(scope="module")
def feature_server(stack: Stack, codes: dict[str, int]) -> Iterator[str]:
    """Its address. It logs what it serves."""
    process = stack.start("feature-server", SPOOR_FEATURES__SERVED_FOLDER=str(stack.folder / "served"))
    try:

        def healthy() -> bool:
            assert process.poll() is None, stack.log("feature-server")
            return stack.healthy("feature-server")

        wait_until(healthy, "the feature server's health check passes")
        yield f"http://127.0.0.1:{stack.here['6566']}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def post(url: str, body: dict) -> tuple[int, str]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_every_service_with_our_image_is_run_here():
    images = {name: service["image"] for name, service in compose()["services"].items()}
    ours = [name for name, image in images.items() if image.startswith(("spoor:", "flink:", "apache/beam"))]
    assert sorted(ours) == sorted(RUN_HERE)


@pytest.mark.parametrize("service", ["topics", "apply", "stream", "archive", "backfill", "verify", "expire"])
def test_the_service_ends_with_0(codes: dict[str, int], stack: Stack, service: str):
    assert codes[service] == 0, stack.log(service)[-3000:]


def test_the_services_say_what_they_did(stack: Stack):
    assert f"{len(EVENTS):,} events of" in stack.log("stream") and "1 dead letters" in stack.log("stream")
    assert f"{len(EVENTS):,} events to" in stack.log("archive") and "1 bad records" in stack.log("archive")
    assert f"{USERS} users, 0 histories and 0 embeddings written online" in stack.log("backfill")
    assert f"{USERS:,} users, 0 differences" in stack.log("verify")
    assert "0 markers are gone" in stack.log("expire") and "0 markers wait" in stack.log("expire")


def test_the_jobs_leave_their_figures_where_node_exporter_serves_them(stack: Stack):
    (flag,) = [word for word in compose()["services"]["job-metrics"]["command"] if "directory=" in word]
    folder = Path(stack.translate(flag.partition("=")[2], "archive"))
    found: dict[tuple[str, ...], float] = {}
    for file in folder.glob("*.prom"):
        for family in text_string_to_metric_families(file.read_text()):
            found |= {(sample.name, *sample.labels.values()): sample.value for sample in family.samples}
    for job in ("archive", "backfill", "verify"):
        assert found["spoor_job_items_done", job] == found["spoor_job_items", job] > 0
    for job in ("archive", "backfill", "verify", "expire"):
        assert found["spoor_job_ended_timestamp_seconds", job] >= found["spoor_job_started_timestamp_seconds", job]
    assert found["spoor_archive_events",] == len(EVENTS)
    assert found["spoor_archive_bad_records", "not-json"] == 1
    assert found["spoor_backfill_rows",] == found["spoor_verify_users",] == USERS
    assert sum(value for (name, *_), value in found.items() if name == "spoor_verify_differences") == 0
    assert found["spoor_expire_waiting_markers",] == found["spoor_expire_unfinished_users",] == 0


def test_rankers_read_embeddings_from_the_feature_server(feature_server: str):
    answer = post(
        f"{feature_server}/get-online-features",
        {"feature_service": "ranker_base_1", "entities": {"user_id": ["user-3", "nobody"], "item_id": ["item-1"] * 2}},
    )
    assert answer[0] == 200, answer
    content = json.loads(answer[1])
    column = content["metadata"]["feature_names"].index("embedding")
    known, unknown = content["results"][column]["values"]
    assert sum(x * x for x in known) == pytest.approx(1, abs=1e-4)
    assert unknown is None


def test_what_the_feature_server_answered_is_logged_and_rankers_can_be_trained_on_it(feature_server: str, stack: Stack):
    items = ITEMS[:3]
    body = {"feature_service": "ranker_base_1", "entities": {"user_id": ["user-4"] * 3, "item_id": items}}
    code, text = post(f"{feature_server}/get-online-features", body)
    assert code == 200, text
    answer = json.loads(text)
    served = stack.folder / "served" / "ranker_base_1"

    def logged() -> duckdb.DuckDBPyRelation:
        return duckdb.sql(f"from read_parquet('{served}/*/*.parquet') where user_id = 'user-4' order by item_id")

    wait_until(lambda: list(served.glob("day=*/*.parquet")) and len(logged()) == 3, "the answer is in the log")
    rows = dict(zip(logged().columns, zip(*logged().fetchall(), strict=True), strict=True))
    for name, column in zip(answer["metadata"]["feature_names"], answer["results"], strict=True):
        for found, value in zip(rows[name], column["values"], strict=True):
            assert found == pytest.approx(value, abs=1e-6) if isinstance(value, list) else found == value, name
    assert set(rows["__model_version"]) == {"base-1"} and len(set(rows["__request_id"])) == 1
    clicks = duckdb.sql(f"select 'user-4' user_id, '{items[1]}' item_id, now() clicked_at")
    assert clicks.columns[2] == "clicked_at"
    [query] = re.findall(r"```sql\n(.+?)```", (ROOT / "docs" / "operations.md").read_text(), re.DOTALL)
    trained_on = duckdb.sql(query.replace("/var/lib/spoor-served/ranker/", f"{served}/"))
    labels = trained_on.filter("user_id = 'user-4'").project("item_id, label").fetchall()
    assert sorted(labels) == [(item, item == items[1]) for item in items]


def test_the_feature_server_s_user_cannot_write(feature_server: str, store: RedisServer, stack: Stack):
    _, reader = stack.passwords()[2:]
    client = redis.Redis(port=store.port, username="ranker", password=reader)
    for refused in (lambda: client.hset("user", "a", "b"), client.flushall, lambda: client.eval("return 1", 0)):
        with pytest.raises(redis.exceptions.NoPermissionError):
            refused()
    assert "username=ranker," in Path(stack.translate("/run/secrets/feature_store.yaml", "feature-server")).read_text()


def test_a_release_is_promoted_by_the_service_that_may_write_the_folder(stack: Stack):
    assert stack.run("release", "promote", "base-1") == 0, stack.log("release")
    assert "ranker is base-1" in stack.log("release")
    assert stack.run("release") == 0 and "base-1  16 dimensions" in stack.log("release")
    assert "promoted" in stack.log("release")


def test_a_backfill_runs_on_flink_with_its_python_in_the_pool(stack: Stack):
    with ExitStack() as running:
        for service in FLINK:
            process = stack.start(service)
            running.callback(process.wait, 60)
            running.callback(process.terminate)

            def healthy(service: str = service, process: subprocess.Popen[bytes] = process) -> bool:
                assert process.poll() is None, stack.log(service)
                return stack.healthy(service)

            wait_until(healthy, f"the health check of {service} passes")
        assert stack.run("backfill-on-flink") == 0, stack.log("backfill-on-flink")
    assert f"{USERS} users, 0 histories and 0 embeddings written online" in stack.log("backfill-on-flink")
    assert "Starting worker with command" in stack.log("flink-worker-pool")


def test_redis_passes_its_health_check_without_a_password(store: RedisServer):
    kind, command = compose()["services"]["redis"]["healthcheck"]["test"]
    assert kind == "CMD-SHELL"
    if shutil.which("redis-cli") is None:
        pytest.skip("redis-cli is not installed: `apt-get install redis-tools`, then run again")
    for port, healthy in ((store.port, True), (free_port(), False)):
        done = subprocess.run(command.replace("redis-cli", f"redis-cli -p {port}"), shell=True, capture_output=True)
        assert (done.returncode == 0) is healthy


def test_nobody_reads_or_writes_the_store_without_logging_in(store: RedisServer, stack: Stack):
    client = store.client()
    assert client.ping()
    for refused in (lambda: client.get("x"), lambda: client.set("x", "y"), client.flushall, client.config_get):
        with pytest.raises(redis.exceptions.NoPermissionError):
            refused()
    writer, _ = stack.passwords()[2:]
    client = redis.Redis(port=store.port, username="spoor", password=writer)
    for refused in (client.flushall, client.config_get, lambda: client.keys("*"), lambda: client.acl_list()):
        with pytest.raises(redis.exceptions.NoPermissionError):
            refused()


def test_the_store_keeps_what_it_acknowledged_and_evicts_nothing(stack: Stack, store: RedisServer):
    folder = Path(psutil.Process(store.process.pid).cwd())
    assert list(folder.rglob("*.aof")), sorted(folder.rglob("*"))
    told = psutil.Process(store.process.pid).cmdline()
    assert not [word for word in told for password in stack.passwords() if password in word]


def test_no_output_holds_a_password(stack: Stack, feature_server: str):
    logs = {path.name: path.read_text() for path in stack.folder.glob("*.log")}
    assert {f"{service}.log" for service in RUN_HERE} <= logs.keys()
    for name, text in logs.items():
        assert not [password for password in stack.passwords() if password in text], name


def test_a_worker_with_the_wrong_password_says_so_and_not_the_password(stack: Stack):
    environment = stack.prepare("stream")
    password = Path(stack.translate("/run/secrets/kafka-password", "stream"))
    password.write_text("wr0ng-word")
    environment["SPOOR_KAFKA__REQUEST_TIMEOUT_SECONDS"] = "5"
    command = stack.command("stream", compose()["services"]["stream"]["command"])
    done = subprocess.run(command, env=environment, cwd=stack.folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 3, done.stderr
    last = done.stderr.splitlines()[-2:]
    assert last[0].startswith("error: ") and "security settings" in last[1], done.stderr
    assert "wr0ng-word" not in done.stdout + done.stderr
