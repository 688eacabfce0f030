"""docker-compose.yml and the Dockerfile keep what docs/operations.md says of them."""

import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from spoor.config import load_settings
from tests.deploy.conftest import COMPOSE, DEPLOY, ROOT, compose, secret_names

CHECKER_MISSING = "check-jsonschema is not installed: `pip install check-jsonschema`, then run again"
CONTENT = compose()
SERVICES: dict[str, dict[str, Any]] = CONTENT["services"]
each_service = pytest.mark.parametrize(("name", "service"), SERVICES.items(), ids=SERVICES)


def size(text: str) -> int:
    return int(text[:-1]) << {"m": 20, "g": 30}[text[-1]]


def test_the_file_is_valid_against_the_compose_schema():
    beside = Path(sys.executable).parent / "check-jsonschema"
    checker = str(beside) if beside.exists() else shutil.which("check-jsonschema")
    if checker is None:
        pytest.skip(CHECKER_MISSING)
    done = subprocess.run(
        [checker, "--builtin-schema", "vendor.compose-spec", str(COMPOSE)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@each_service
def test_images_have_a_version(name: str, service: dict[str, Any]):
    assert re.fullmatch(r"[a-z0-9./_-]+:v?\d+\.\d+\.\d+[a-z0-9.-]*", service["image"]), service["image"]


@each_service
def test_containers_run_without_root_capabilities_or_a_writable_file_system(name: str, service: dict[str, Any]):
    assert re.fullmatch(r"[1-9]\d*:\d+", service["user"])
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "pid", "devices"} & service.keys()
    kind, _, other = service.get("network_mode", "service:stream").partition(":")
    assert kind == "service" and other in SERVICES, "beside another container, never the host's network"


@each_service
def test_memory_cores_and_logs_are_bounded(name: str, service: dict[str, Any]):
    assert size(service["mem_limit"]) <= 4 << 30 and 0 < service["cpus"] <= 2
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert all("size=" in mount for mount in service["tmpfs"])


@each_service
def test_servers_have_a_health_check_and_one_shots_end(name: str, service: dict[str, Any]):
    if service["restart"] == "no":
        assert "healthcheck" not in service
    else:
        assert service["healthcheck"].keys() == {"test", "interval", "timeout", "retries", "start_period"}


@each_service
def test_only_the_loopback_is_published(name: str, service: dict[str, Any]):
    for port in service.get("ports", ()):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)


@each_service
def test_passwords_come_from_files(name: str, service: dict[str, Any]):
    for variable, value in service.get("environment", {}).items():
        if re.search("PASSWORD|SECRET|TOKEN", variable):
            assert variable.endswith("_FILE") and str(value).startswith("/run/secrets/")
    words = [*service.get("entrypoint", ()), *service.get("command", ())]
    assert not re.search(r"password|secret", " ".join(words), re.IGNORECASE)


@each_service
def test_what_is_waited_for_is_there_and_can_come(name: str, service: dict[str, Any]):
    for other, how in service.get("depends_on", {}).items():
        ends = SERVICES[other]["restart"] == "no"
        assert how["condition"] == ("service_completed_successfully" if ends else "service_healthy")
        if profiles := SERVICES[other].get("profiles"):
            assert service["profiles"] and set(service["profiles"]) <= set(profiles)


def test_every_file_and_volume_is_there_and_used():
    mounted = {config["source"] for service in SERVICES.values() for config in service.get("configs", ())}
    assert mounted == CONTENT["configs"].keys()
    for config in CONTENT["configs"].values():
        assert (ROOT / config["file"]).is_file(), config
    assert {name for service in SERVICES.values() for name in secret_names(service).values()} == CONTENT[
        "secrets"
    ].keys()
    volumes = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", ())}
    assert {volume for volume in volumes if not volume.startswith(".")} == CONTENT["volumes"].keys()
    for path in (volume for volume in volumes if volume.startswith("./deploy")):
        assert (ROOT / path).is_dir()


def test_the_passwords_made_are_the_secrets_mounted_and_nobody_else_s(tmp_path: Path):
    script, folder = DEPLOY / "new-secrets", tmp_path / "secrets"
    subprocess.run([script, folder], check=True, capture_output=True)
    assert {path.name for path in folder.iterdir()} == {Path(s["file"]).name for s in CONTENT["secrets"].values()}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o444}
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    again = subprocess.run([script, folder], capture_output=True, text=True)
    assert again.returncode == 2 and "hint: " in again.stderr
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    other = tmp_path / "other"
    subprocess.run([script, other], check=True, capture_output=True)
    assert all((other / name).read_bytes() != content for name, content in before.items())
    listed = subprocess.run(["git", "check-ignore", DEPLOY / "secrets" / "x"], cwd=ROOT, capture_output=True)
    assert listed.returncode == 0, "git must ignore deploy/secrets"


def test_releases_are_written_by_one_service_alone():
    mounts = {
        name: mount
        for name, service in SERVICES.items()
        for mount in service.get("volumes", ())
        if mount.startswith("./releases:")
    }
    assert [name for name, mount in mounts.items() if not mount.endswith(":ro")] == ["release"]


def test_flink_s_java_gets_the_memory_that_its_settings_add_up_to():
    options = yaml.safe_load((DEPLOY / "flink" / "config.yaml").read_text())
    memory = {
        name.removeprefix("taskmanager.memory."): size(text)
        for name, text in options.items()
        if name.startswith("taskmanager.memory.")
    }
    service = SERVICES["flink-task-manager"]
    java = {
        flag: size(text) for flag, text in re.findall(r"-(?:XX:)?([A-Z]\w+?)=?(\d+m)", " ".join(service["command"]))
    }
    assert java["Xmx"] == memory["framework.heap.size"] + memory["task.heap.size"]
    off_heap = memory["framework.off-heap.size"] + memory["task.off-heap.size"] + memory["network.max"]
    assert java["MaxDirectMemorySize"] == off_heap
    assert java["MaxMetaspaceSize"] == memory["jvm-metaspace.size"]
    whole = sum(java.values()) + memory["managed.size"] + memory["jvm-overhead.max"]
    assert whole + (1 << 30) < size(service["mem_limit"]), "with what lies in /tmp"


def test_the_containers_settings_are_valid_and_log_in_to_kafka(tmp_path: Path):
    file = tmp_path / "spoor.toml"
    (tmp_path / "password").write_text("s3cret")
    file.write_text((DEPLOY / "spoor.toml").read_text().replace("/run/secrets/kafka-password", "password"))
    settings = load_settings(file=file, environ={})
    assert settings.kafka.sasl_password == "s3cret"
    assert settings.kafka.security_protocol == "SASL_PLAINTEXT"
    assert f":{settings.stream.metrics_port}/healthz" in str(SERVICES["stream"]["healthcheck"])


def test_redis_refuses_writes_before_its_container_is_killed_for_memory():
    options = dict(re.findall(r"^(\S+) (.+)$", (DEPLOY / "redis" / "redis.conf").read_text(), re.MULTILINE))
    assert (options["appendonly"], options["maxmemory-policy"]) == ("yes", "noeviction")
    assert size(options["maxmemory"].removesuffix("b")) < 0.8 * size(SERVICES["redis"]["mem_limit"])


def test_the_dockerfile_has_stages_pinned_bases_and_ends_without_root():
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    bases = [line.split()[1] for line in lines if line.startswith("FROM ")]
    assert len(bases) == 2 and len(set(bases)) == 1
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", bases[0])
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users == [SERVICES["stream"]["user"]]
    assert not [line for line in lines if line.startswith("ADD ")]
    for line in lines:
        if line.startswith("COPY ") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), line


def test_the_build_sees_every_package_and_no_secrets():
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    rooms = {path.name for path in (ROOT / "spoor").iterdir() if path.is_symlink()}
    assert len(rooms) == 8
    assert {"spoor", "setup.py", "pyproject.toml", *rooms} <= allowed
    assert not [name for name in allowed if "secret" in name or name in ("deploy", "tests")]
    assert (ROOT / ".dockerignore").read_text().splitlines()[0] == "*"
